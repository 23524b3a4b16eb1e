"""What the recipe that llm-compressor writes beside the weights says of how they were made."""

import re

from recover.containers.huggingface.modules import Module

_COMPENSATING = "GPTQModifier", "SparseGPTModifier"
_SCALING = "SmoothQuantModifier", "AWQModifier"
_ROTATING = "SpinQuantModifier", "QuIPModifier"
_SEARCHED = re.compile(r"observer\W+\w*mse")


def check_recipe(module: Module) -> None:
    """Refuse weights that are not the original ones, rounded.

    Raises
    ------
    SafetensorsError
        If columns were scaled, or the matrix was rotated.
    """
    for name in _ROTATING:
        if name in module.recipe:
            raise module.error(
                f"recipe.yaml names {name}, which rotates the weights; give a file without it"
            )
    for name in _SCALING:
        if name in module.recipe:
            raise module.error(
                f"recipe.yaml names {name}, which scales columns of the weights by factors that"
                " are not stored; give a file without it"
            )


def is_compensated(module: Module) -> bool:
    """Whether codes make up for the errors of others, so that they confine no weight."""
    return any(name in module.recipe for name in _COMPENSATING)


def may_clip(module: Module) -> bool:
    """Whether scales were searched for, so that the largest weights may have been clipped."""
    return bool(_SEARCHED.search(f"{module.recipe} {module.config}"))
