"""What the recipe that llm-compressor writes beside the weights says of how they were made."""

import re
from enum import Enum

from recover.containers.huggingface.modules import Module


class Made(Enum):
    """How codes came about, as far as the recipe tells."""

    PLAINLY = ""
    UNKNOWN = "no recipe"
    CORRECTING = "made to correct errors"
    SCALED = "columns scaled"


# What a recipe can name; others are taken to change weights in some way.
_ROUNDING = frozenset({"QuantizationModifier"})
_SCALING = frozenset({"SmoothQuantModifier", "LogarithmicEqualizationModifier", "AWQModifier"})
_ROTATING = frozenset({"SpinQuantModifier", "QuIPModifier", "TransformModifier"})
_MODIFIER = re.compile(r"\b\w+Modifier\b")
_MAPPINGS = re.compile(
    r"^(?P<indent> +)mappings:(?P<items>.*\n(?:(?P=indent)[ -].*\n?)*)", re.MULTILINE
)
# Modules in these, without tags and keys of YAML, and how their names end.
_NAME = re.compile(r"(?<![\w!./])(?!\w+:\s|!)[\w^.*][^\s,\[\]'\"]*")
_END = re.compile(r"(re:)?\^?([\w.*\\]*[.*])?(?P<end>[a-z]\w*)\$?")
_SEARCHING = re.compile(r"\w*(mse|imatrix)")
_SEARCHED = re.compile(r"observer\W+\w*(mse|imatrix)")
_CLOSED = frozenset({"minmax", "memoryless_minmax", "static_minmax"})


def made(module: Module) -> Made:
    """What the recipe says of the codes.

    Raises
    ------
    SafetensorsError
        If the matrix was rotated.
    """
    named = frozenset(_MODIFIER.findall(module.recipe))
    transform = module.config.get("transform_config")
    rotations = sorted(named & _ROTATING) or (["transform_config"] if transform else [])
    if rotations:
        raise module.error(
            f"the weights were rotated ({rotations[0]}), so that a stored number is a sum of many"
            " original ones; give a file without it"
        )
    if named & _SCALING and _may_be_scaled(module):
        return Made.SCALED
    if not named:
        return Made.UNKNOWN
    return Made.PLAINLY if named <= _ROUNDING | _SCALING else Made.CORRECTING


def _may_be_scaled(module: Module) -> bool:
    """Whether columns or rows of a module may have been scaled, by the recipe's mappings.

    They name what is scaled by the ends of names. Where a modifier has no mappings, or some that
    are not of that kind, any module may be.
    """
    ends: set[str] = set()
    for modifier in _SCALING & frozenset(_MODIFIER.findall(module.recipe)):
        _, _, settings = module.recipe.partition(f"{modifier}:")
        mappings = _MAPPINGS.search(settings)
        # those of another modifier, behind this one, are none of its own
        if mappings is None or _MODIFIER.search(settings, 0, mappings.start()):
            return True
        found = [_END.fullmatch(each) for each in _NAME.findall(mappings["items"])]
        if not any(each is not None and "norm" in each["end"] for each in found):
            return True
        if any(each is None for each in found):
            return True
        ends.update(each["end"] for each in found if each is not None)
    return module.name.endswith(tuple(ends))


def corrects(module: Module) -> bool:
    """Whether the recipe names more than scaling and rounding: codes may correct errors."""
    return bool(frozenset(_MODIFIER.findall(module.recipe)) - _SCALING - _ROUNDING)


def made_of_floats(module: Module) -> Made:
    """As `made`, where nobody undoes the scaling of columns.

    Raises
    ------
    SafetensorsError
        If columns were scaled, too.
    """
    how = made(module)
    if how is Made.SCALED:
        raise module.error(
            "recipe.yaml says that columns of the weights were scaled, by factors that are not"
            " stored; give a file without it"
        )
    return how


def _observers(module: Module) -> list[object]:
    """What chose the scales, by the configuration."""
    groups = module.config.get("config_groups")
    return [
        each["weights"].get("observer")
        for each in (groups.values() if isinstance(groups, dict) else ())
        if isinstance(each, dict) and isinstance(each.get("weights"), dict)
    ]


def is_closed(module: Module) -> bool:
    """Whether all scales are known to be those of the largest weights, so that none is clipped."""
    closed = [isinstance(each, str) and each in _CLOSED for each in _observers(module)]
    return bool(closed) and all(closed) and not _SEARCHED.search(module.recipe)


def is_searched(module: Module) -> bool:
    """Whether scales are known to be searched for, so that the largest weights may be clipped."""
    found = any(isinstance(o, str) and _SEARCHING.match(o) for o in _observers(module))
    return found or _SEARCHED.search(module.recipe) is not None
