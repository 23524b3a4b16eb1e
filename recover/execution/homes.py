"""Where the files of an output lie until all of them are complete."""

from pathlib import Path
from typing import Protocol

from recover.execution.folder import OutputFolder
from recover.execution.output import OutputFile, OutputFiles
from recover.execution.sharing import check_unshared
from recover.execution.work import Work


class Home(Protocol):
    """Where what is written of an output is kept, for processes that go on with it.

    Attributes
    ----------
    share : int or None
        As of `recover.execution.output.OutputFile`.
    keeps : bool
        Whether what is there is worth keeping after an error.
    partial_folder : Path
        Where the files of a folder lie.
    """

    @property
    def share(self) -> int | None: ...  # noqa: D102
    @property
    def keeps(self) -> bool: ...  # noqa: D102
    @property
    def partial_folder(self) -> Path: ...  # noqa: D102

    def partial(self, path: Path) -> Path:
        """Where an output file lies."""


def outputs_of(work: Work, home: Home | None = None, *, replaces: bool = False) -> OutputFiles:
    """All files of a work, to be opened, and to get their names together.

    Parameters
    ----------
    work : Work
        Whose files.
    home : Home, optional
        Where they lie, if other processes go on with them.
    replaces : bool
        Whether a model's folder that is there already may be replaced.

    Raises
    ------
    OutputError
        If they cannot be written there, or are being written in parts.
    """
    share = None if home is None else home.share
    if share is None:
        check_unshared(work.output)
    inside = [file for file in work.files if work.is_inside(file.path)]
    single = [
        OutputFile(
            file.path,
            file.n_bytes,
            work.inputs,
            partial=None if home is None else home.partial(file.path),
            share=share,
        )
        for file in work.files[len(inside) :]
    ]
    if work.is_folder:
        outputs: OutputFiles = OutputFolder(
            work.output,
            inside,
            work.inputs,
            replaces=replaces,
            partial=None if home is None else home.partial_folder,
            share=share,
            beside=single,
        )
    else:
        outputs = OutputFiles(single, work.n_parts)
    if home is not None and home.keeps:
        outputs.keep()
    return outputs


def write_headers(work: Work, outputs: OutputFiles) -> None:
    """Write what all files begin with."""
    for file, output in zip(work.files, outputs.files, strict=True):
        output.write_at(0, file.header)
