"""What may be asked of a merge."""

import os
from dataclasses import dataclass

from recover.calibration.weights import Calibration, load_calibration
from recover.errors import UsageError
from recover.estimators import DEFAULT_METHOD, ESTIMATES, MEAN, estimator
from recover.evidence.lattice import SIGNIFICAND_BITS

OUTTYPES = ("f16", "bf16", "f32", "q8_0")
SNAPS = ("auto", "none", "bf16", "f16")


@dataclass(frozen=True)
class MergeOptions:
    """Options that go together; `recover.merge.plan.plan_merge` says what they mean.

    Attributes
    ----------
    method, estimate, outtype, snap : str
        As given.
    calibration : Calibration or None
        Loaded, if it was given as a path.
    split_max_size : int or None
        As given.
    """

    method: str
    estimate: str
    outtype: str
    snap: str
    calibration: Calibration | None
    split_max_size: int | None

    @property
    def names_format(self) -> bool:
        """Whether the user says what the original weights were stored as."""
        return self.snap in SIGNIFICAND_BITS

    @property
    def snaps(self) -> bool:
        """Whether all weights are rounded to that format's numbers."""
        return self.snap != "none" and self.outtype != "q8_0"


def check_options(
    method: str,
    estimate: str,
    outtype: str,
    snap: str,
    calibration: Calibration | str | os.PathLike[str] | None,
    split_max_size: int | None,
) -> MergeOptions:
    """The options, if they can be carried out.

    Raises
    ------
    CalibrationError
        If the calibration cannot be read.
    UsageError
        If an option has no such value, or does not go with another one.
    """
    calibrated = estimator(method).CALIBRATED
    if outtype not in OUTTYPES:
        raise UsageError(f"output type {outtype!r} is unknown; known are {', '.join(OUTTYPES)}")
    if estimate not in ESTIMATES:
        raise UsageError(f"estimate {estimate!r} is unknown; known are {', '.join(ESTIMATES)}")
    if estimate != MEAN and method != DEFAULT_METHOD:
        raise UsageError(f"method {method} has no {estimate} estimate; only {DEFAULT_METHOD} has")
    if snap not in SNAPS:
        raise UsageError(f"snap {snap!r} is unknown; known are {', '.join(SNAPS)}")
    if split_max_size is not None and split_max_size < 1:
        raise UsageError(f"parts of {split_max_size} bytes are too small")
    if isinstance(calibration, str | os.PathLike):
        calibration = load_calibration(calibration)
    if calibration is not None and calibrated is None:
        raise UsageError(f"the method {method} uses no calibration; linear and posterior do")
    return MergeOptions(method, estimate, outtype, snap, calibration, split_max_size)
