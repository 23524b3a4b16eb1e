"""What may be asked of a merge."""

import os
from dataclasses import dataclass
from pathlib import Path

from recover._text import printable
from recover.calibration.weights import Calibration, load_calibration
from recover.errors import OutputError, UsageError
from recover.estimators import ESTIMATES, MEAN, estimator
from recover.estimators.base import having
from recover.evidence.lattice import SIGNIFICAND_BITS

OUTTYPES = ("f16", "bf16", "f32", "q8_0")
SNAPS = ("auto", "none", "bf16", "f16")


@dataclass(frozen=True)
class FolderOptions:
    """How a folder is written.

    Attributes
    ----------
    max_shard_size : int or None
        Most bytes of weights in a file; None for 5 GB.
    config : Path or None
        A folder whose ``config.json`` and tokenizer are taken; None: rebuilt from the metadata.
    """

    max_shard_size: int | None
    config: Path | None


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
    folder : FolderOptions or None
        How a folder is written; None for a GGUF file.
    """

    method: str
    estimate: str
    outtype: str
    snap: str
    calibration: Calibration | None
    split_max_size: int | None
    folder: "FolderOptions | None" = None

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
    known = estimator(method)
    if outtype not in OUTTYPES:
        raise UsageError(f"output type {outtype!r} is unknown; known are {', '.join(OUTTYPES)}")
    if estimate not in ESTIMATES:
        raise UsageError(f"estimate {estimate!r} is unknown; known are {', '.join(ESTIMATES)}")
    if estimate != MEAN and not known.has_mode:
        those = having(lambda each: each.has_mode)
        raise UsageError(f"method {method} has no {estimate} estimate; only {those} has")
    if snap not in SNAPS:
        raise UsageError(f"snap {snap!r} is unknown; known are {', '.join(SNAPS)}")
    if split_max_size is not None and split_max_size < 1:
        raise UsageError(f"parts of {split_max_size} bytes are too small")
    if isinstance(calibration, str | os.PathLike):
        calibration = load_calibration(calibration)
    if calibration is not None and known.calibrated is None:
        those = having(lambda each: each.calibrated)
        raise UsageError(f"the method {method} uses no calibration; {those} do")
    return MergeOptions(method, estimate, outtype, snap, calibration, split_max_size)


def folder_options(
    output: str | os.PathLike[str] | None,
    outtype: str,
    max_shard_size: int | None,
    config: str | os.PathLike[str] | None,
    **not_there: object,
) -> FolderOptions | None:
    """How the output is written, if it is a folder; None if it is a GGUF file, or there is none.

    Parameters
    ----------
    output : path-like
        A folder if it is one, or ends in a slash; None if nothing is written.
    outtype, max_shard_size, config
        As given.
    **not_there
        What only GGUF files have, by option; None if it was not asked for.

    Raises
    ------
    OutputError
        If its name says nothing.
    UsageError
        If options do not go with it.
    """
    if output is None:
        return None
    path = Path(output)
    if not (os.fspath(output).endswith(("/", os.sep)) or path.is_dir()):
        if not path.name.lower().endswith(".gguf"):
            raise OutputError(
                f"{printable(path)}: is neither a GGUF file nor a folder; let its name end in .gguf"
                " or in /"
            )
        if max_shard_size is not None or config is not None:
            option = "--config" if max_shard_size is None else "--max-shard-size"
            raise UsageError(f"{option} is for folders, and {printable(path)} is a file")
        return None
    if given := [name for name, value in not_there.items() if value is not None]:
        option = f"--{given[0].replace('_', '-')}"
        raise UsageError(f"{option} is for GGUF files, and {printable(path)} is a folder")
    if outtype == "q8_0":
        raise UsageError(f"folders hold no q8_0, and {printable(path)} is one")
    if max_shard_size is not None and max_shard_size < 1:
        raise UsageError(f"shards of {max_shard_size} bytes are too small")
    return FolderOptions(max_shard_size, None if config is None else Path(config))


def files_of(*options: object) -> list[Path]:
    """The files among what options are given as: they are read, so nothing is written there."""
    return [Path(each) for each in options if isinstance(each, str | os.PathLike)]
