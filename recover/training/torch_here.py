"""Whether torch can be used."""

from recover.errors import PlanError


def check_torch(device: str) -> None:
    """Refuse a device that torch does not have.

    Raises
    ------
    PlanError
        If torch is not installed, or has no such device.
    """
    try:
        import torch
    except ImportError as error:
        raise PlanError(
            "torch is needed, and is not here: pip install 'recover-weights[gpu]'"
        ) from error
    if device == "cuda" and not torch.cuda.is_available():
        raise PlanError(
            "torch finds no GPU; --device cpu works, but takes hours for what a GPU does in minutes"
        )
