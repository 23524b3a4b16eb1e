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
    if named & _SCALING:
        return Made.SCALED
    if not named:
        return Made.UNKNOWN
    return Made.PLAINLY if named == _ROUNDING else Made.CORRECTING


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
