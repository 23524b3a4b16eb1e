"""Folders that appear under their names when all of their files are complete.

Files are written into a hidden folder beside (`.NAME.xxxxxxxxxxxx.xxxxxxxx.tmp`), which is locked
as long as the process lives that writes them, and is renamed at the end. An older folder of that
name is set aside first (`.NAME.xxxxxxxxxxxx.older`), and goes when the new one has its place. If a
process dies in between, the next one that writes the folder puts the older one back.
"""

import errno
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Self

from recover import _stopping as stopping
from recover._text import printable
from recover.containers.places import FilePlan
from recover.errors import OutputError
from recover.execution.locks import is_locked_by_another, lock
from recover.execution.output import OutputFile, OutputFiles, publish
from recover.execution.publish import hidden, sync_folder

_RANDOM = re.compile(r"[0-9a-f]{8}\.tmp")
_MODEL_FILES = re.compile(r"config\.json|.+\.safetensors")


class OutputFolder(OutputFiles):
    """Files that appear together, in a folder of their own, when all of them are on the disk.

    Parameters
    ----------
    path : Path
        The folder.
    plans : sequence of FilePlan
        Its files.
    inputs : iterable of Path
        Files that must not be overwritten, nor have changed since they were mapped.
    replaces : bool
        Whether a model's folder that is there already may be replaced.
    partial : Path, optional
        The hidden folder, if a later process is to go on with it.
    share : int, optional
        Which part of the work this process does, where several write the same folder.
    beside : sequence of OutputFile
        Files that are written beside the folder, and get their names together with it.

    Raises
    ------
    OutputError
        If the folder cannot be written there.
    """

    def __init__(
        self,
        path: Path,
        plans: Sequence[FilePlan],
        inputs: Iterable[Path],
        *,
        replaces: bool,
        partial: Path | None = None,
        share: int | None = None,
        beside: Sequence[OutputFile] = (),
    ) -> None:
        inputs = tuple(inputs)
        check_output_folder(path, inputs, replaces=replaces)
        self._path = path
        self._target = path.resolve()
        self._replaces = replaces
        self._place = partial or hidden(self._target, f"{secrets.token_hex(4)}.tmp")
        self._keeps = False
        self._descriptor = -1
        self._around = ExitStack()
        self._beside = tuple(beside)
        super().__init__(
            [
                *(
                    OutputFile(
                        plan.path,
                        plan.n_bytes,
                        inputs,
                        within=self._place,
                        takes_notes=partial is not None,
                        share=share,
                    )
                    for plan in plans
                ),
                *beside,
            ]
        )

    def __enter__(self) -> Self:
        """Create the hidden folder and its files, or open what is there of them."""
        with ExitStack() as stack:
            stack.callback(self._leave)
            try:
                finish_earlier_folder(self._target)
                _remove_stale(self._target)
                self._place.mkdir(exist_ok=True)
                self._descriptor = os.open(self._place, os.O_RDONLY | os.O_CLOEXEC)
                lock(self._descriptor)
                stack.enter_context(stopping.leaves_behind(self._remove))
            except OSError as error:
                raise self._error(error) from None
            super().__enter__()
            with suppress(OSError):
                sync_folder(self._place.parent)
            self._around = stack.pop_all()
        return self

    def keep(self) -> None:
        """Leave what was written where it is, if there is an error from now on."""
        self._keeps = True
        super().keep()

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        """Flush and rename, or leave nothing (or what is kept) if there was an error."""
        with self._around:
            super().__exit__(kind, *rest)

    def _publish(self) -> None:
        for file in self.files:
            file.check_inputs()
        sync_folder(self._place)
        stopping.check()
        check_output_folder(self._path, (), replaces=self._replaces)
        try:
            stopping.undivided(self._put)
        except OSError as error:
            raise self._error(error) from None
        if self._beside:
            publish(self._beside, 1)

    def _put(self) -> None:
        """Give the folder its name; an older one goes."""
        aside = hidden(self._target, "older")
        is_older = os.path.lexists(self._target)
        if is_older:
            self._target.rename(aside)
        try:
            self._place.rename(self._target)
        except OSError:
            if is_older:
                aside.rename(self._target)
            raise
        for file in self.files[: len(self.files) - len(self._beside)]:
            file.arrive()
        self.are_in_place = True
        stopping.note(self._path, "is complete")
        sync_folder(self._target.parent)
        if is_older:
            shutil.rmtree(aside, ignore_errors=True)

    def _leave(self) -> None:
        if self._keeps and not self.are_in_place:
            stopping.note(self._path, "is kept as far as it is complete, for --resume")
        self._remove()
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _remove(self) -> None:
        if not self._keeps and not self.are_in_place:
            shutil.rmtree(self._place, ignore_errors=True)

    def _error(self, error: OSError) -> OutputError:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return OutputError(
                f"{printable(self._path)}: no space left ({error.strerror}); free some space or"
                " choose another place"
            )
        return OutputError(f"{printable(self._path)}: cannot be written: {error.strerror}")


def check_output_folder(path: Path, inputs: Iterable[Path], *, replaces: bool) -> None:
    """Refuse a folder that cannot be written, or holds anything that must stay.

    Parameters
    ----------
    path : Path
        The folder; usually not there yet.
    inputs : iterable of Path
        Files that are read.
    replaces : bool
        Whether a model's folder that is there already may be replaced.

    Raises
    ------
    OutputError
        If nothing may be written there.
    """
    shown = printable(path)
    try:
        target = path.resolve()
        if not target.parent.is_dir():
            raise OutputError(f"{shown}: the folder above it does not exist")
        with suppress(FileNotFoundError):
            if not stat.S_ISDIR(target.stat().st_mode):
                raise OutputError(f"{shown}: is no folder; name one to be written")
        found = list(os.scandir(target)) if target.exists() else []
    except (OSError, RuntimeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"{shown}: cannot be written: {reason}") from None
    if not found:
        return
    for each in inputs:
        if target in each.resolve().parents:
            raise OutputError(
                f"{shown}: holds one of the inputs, which are never overwritten; name another"
                " folder"
            )
    if not replaces:
        raise OutputError(f"{shown}: is there already; --force replaces it, all of its files")
    is_model = any(_MODEL_FILES.fullmatch(each.name) for each in found)
    if not is_model or any(each.is_dir(follow_symlinks=False) for each in found):
        raise OutputError(
            f"{shown}: holds other things than a model, so that it is not replaced; name another"
            " folder"
        )


def finish_earlier_folder(target: Path) -> None:
    """End what a process began that died while it replaced a folder."""
    aside = hidden(target, "older")
    if not os.path.lexists(aside):
        return
    if os.path.lexists(target):
        shutil.rmtree(aside, ignore_errors=True)
    else:
        aside.rename(target)


def _remove_stale(target: Path) -> None:
    """Remove what dead processes left behind that were writing a folder."""
    start = hidden(target, "").name
    with os.scandir(target.parent) as entries:
        found = [
            Path(each.path)
            for each in entries
            if each.name.startswith(start)
            and _RANDOM.fullmatch(each.name[len(start) :])
            and each.is_dir(follow_symlinks=False)
        ]
    for path in found:
        with suppress(OSError):
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                if not is_locked_by_another(descriptor):
                    shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(descriptor)
