"""Several processes, on any machines with a common file system, that write one output.

A hidden folder beside the output (`.NAME.xxxxxxxxxxxx.shards`) holds what they share: the files as
far as they are written; `plan`, which the first of them creates and all others compare with their
own; for each part a journal (see `recover.execution.saving`) and, once all of its bytes are on the
disk, `I.done` with its sums. Who sees all parts done after its own creates `finishing`, and is the
only one to give the output its name. Before it does, `.NAME.xxxxxxxxxxxx.shards.json` says what the
output is going to be, with all sums: a part that is repeated later finds that all is done. The
folder goes at the end.

Names that only one process can create decide between them; locks do not matter. A process that dies
leaves what it began: the same part, started again, goes on from there, and if it was the one that
finished, it finishes.
"""

import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from recover._text import printable, quoted, some
from recover.containers.gguf.parts import whole_path
from recover.errors import OutputError
from recover.execution.common import get, put, put_first
from recover.execution.fingerprints import digest_of
from recover.execution.folder import check_output_folder, finish_earlier_folder
from recover.execution.gathering import Gathering, Totals, do_tasks
from recover.execution.journal import Journal
from recover.execution.kept import damaged, read_seconds
from recover.execution.output import OutputFile
from recover.execution.publish import finish_earlier, hidden, sync_folder
from recover.execution.saving import Saver
from recover.execution.shares import Shard, shares
from recover.execution.work import HowToWork, Work

Tell = Callable[[str], None]
"""Called with a line for people."""

_FORMAT = "recover.shards/1"
_PLAN, _FINISHING = "plan", "finishing"
_TRIES = 5


@dataclass(frozen=True)
class PartResult:
    """What a process did that was not the last one."""

    output: Path
    """What becomes of all parts."""
    shard: Shard
    """Which part is done."""
    n_weights: int
    """Weights of the part."""
    seconds: float
    """What they took."""
    missing: tuple[int, ...]
    """Parts that are not done yet."""
    finished_by: int | None
    """If there are none, the part whose process gives the output its name."""

    def to_json(self) -> dict[str, Any]:
        """The document that ``--json`` prints."""
        return {
            "output": str(self.output),
            "shard": str(self.shard),
            "complete": False,
            "missing": list(self.missing),
            "finished_by": self.finished_by,
            "n_weights": self.n_weights,
            "seconds": self.seconds,
        }


def check_unshared(output: Path) -> None:
    """Refuse to write an output alone that other processes are writing in parts.

    Raises
    ------
    OutputError
        If there are parts of it.
    """
    folder = hidden(whole_path(output.resolve()), "shards")
    if (folder / _PLAN).exists():
        n_done = len(list(folder.glob("*.done")))
        raise OutputError(
            f"{printable(output)}: is being written in parts ({n_done} done) by processes with"
            f" --shard; do what is left with --shard, or, to start over, remove {printable(folder)}"
        )


class Sharing:
    """What the processes share that write one output, and the part of this one.

    Parameters
    ----------
    work : Work
        All of it.
    shard : Shard
        The part of this process.
    tell : callable, optional
        Hears what is taken over, and what is kept.
    replaces : bool
        Whether a model's folder that is there already may be replaced.

    Attributes
    ----------
    is_complete : bool
        Whether the output has its name already.
    totals : dict of int to Summed
        The sums of all parts, if it is or this process is to finish.
    notes : mapping of str to Any
        What `announce` was told, if it is complete.
    seconds : float
        What all parts took together.

    Raises
    ------
    OutputError
        If another plan is carried out there, or another process is at this part, or the folder
        cannot be written.
    """

    def __init__(
        self, work: Work, shard: Shard, tell: Tell | None = None, *, replaces: bool = False
    ) -> None:
        self.is_complete = False
        self.totals: Totals = {}
        self.notes: Mapping[str, Any] = {}
        self.seconds = 0.0
        self._work = work
        self._shard = shard
        self._tell = tell
        self._replaces = replaces
        self._target = whole_path(work.output.resolve())
        self._folder = hidden(self._target, "shards")
        self._marker = hidden(self._target, "shards.json")
        self._first: dict[str, Any] = {}
        self._mine: list[int] = []
        self._claims = False
        self._around = ExitStack()

    def __enter__(self) -> Self:
        """Join the others, or find that all is done."""
        self._first = {
            "format": _FORMAT,
            "command": self._work.command,
            "fingerprint": dict(self._work.fingerprint()),
            "n_shards": self._shard.n,
            "files": [str(file.path.resolve()) for file in self._work.files],
        }
        try:
            if self._work.is_folder:
                finish_earlier_folder(self._work.output.resolve())
            else:
                finish_earlier(self._work.files[0].path.resolve())
            self.is_complete = self._find_complete() or self._join()
        except OSError as error:
            raise self._error(error) from None
        self._mine = shares(self._work.units, self._shard.n)[self._shard.number - 1]
        return self

    # Where things are.

    @property
    def share(self) -> int:
        """The number of this process among those that write the files."""
        return self._shard.number

    @property
    def keeps(self) -> bool:
        """What is there is always kept."""
        return True

    def partial(self, path: Path) -> Path:
        """Where an output file is written."""
        if self._work.is_inside(path):
            return self.partial_folder / path.name
        return self._folder_beside(path) / f"{self._key}.{path.name}"

    @property
    def partial_folder(self) -> Path:
        """Where the files of a folder are written."""
        return self._folder / f"{self._key}.files"

    @property
    def _key(self) -> str:
        return digest_of(self._first)[:8]

    def _folder_beside(self, path: Path) -> Path:
        """The hidden folder in the folder of a file."""
        path = path.resolve()
        return self._folder if path.parent == self._folder.parent else hidden(path, "shards")

    def _files(self) -> list[OutputFile]:
        """The files that are there, to be opened."""
        return [
            OutputFile(
                file.path,
                file.n_bytes,
                self._work.inputs,
                partial=self.partial(file.path),
                within=self.partial_folder if self._work.is_inside(file.path) else None,
                share=self._shard.number,
            )
            for file in self._work.files
        ]

    def _done(self, number: int) -> Path:
        return self._folder / f"{number}.done"

    # The plan that all have.

    def _join(self) -> bool:
        """Make the plan that of all, or see that it is; whether all is done instead."""
        if self._work.is_folder:
            replaces = self._replaces
            check_output_folder(self._work.output, self._work.inputs, replaces=replaces)
        for _ in range(_TRIES):
            for folder in {self._folder, *map(self._folder_beside, self._paths_of_files())}:
                folder.mkdir(exist_ok=True)
                sync_folder(folder.parent)
            plan = self._folder / _PLAN
            try:
                if not plan.exists():
                    self._create_files()
                    if put_first(plan, self._first):
                        self._marker.unlink(missing_ok=True)
            except FileNotFoundError:  # the last one of earlier processes has removed the folder
                continue
            found = get(plan)
            if found is None and not plan.exists():
                continue
            if found != self._first:
                raise self._other(found)
            if missing := self._missing_files():
                if self._find_complete():
                    return True
                raise OutputError(
                    f"{printable(self._work.output)}: what is written of it is not there any more"
                    f" ({printable(missing[0])}); {self._start_over()}"
                )
            return False
        raise OutputError(f"{printable(self._folder)}: vanishes while it is used")

    def _paths_of_files(self) -> Sequence[Path]:
        paths = [file.path for file in self._work.files]
        return [path for path in paths if not self._work.is_inside(path)]

    def _create_files(self) -> None:
        if self._work.is_folder:
            self.partial_folder.mkdir(exist_ok=True)
        for file in self._files():
            file.create_shared()

    def _missing_files(self) -> list[Path]:
        paths = [self.partial(file.path) for file in self._work.files]
        return [path for path in paths if not path.exists()]

    def _other(self, found: Any) -> OutputError:
        """What is wrong with a plan that is not ours."""
        reasons = ["another version of this program"]
        with suppress(LookupError, TypeError, AttributeError):
            if found["format"] == _FORMAT:
                before, now = found["fingerprint"], self._first["fingerprint"]
                reasons = [f"other {name}" for name in now if before.get(name) != now[name]]
                if found["n_shards"] != self._shard.n:
                    reasons.append(f"in {found['n_shards']} parts, not {self._shard.n}")
                if found["command"] != self._work.command:
                    reasons = [f"another command, {found['command']}"]
                if found["files"] != self._first["files"] and not reasons:
                    reasons.append("other files")
        return OutputError(
            f"{printable(self._work.output)}: is being written in parts of another plan"
            f" ({', '.join(reasons)}); give all parts the same inputs and options;"
            f" {self._start_over()}"
        )

    def _start_over(self) -> str:
        return f"to start over, remove {printable(self._folder)}"

    # What is done.

    def carry_out(self, how: HowToWork) -> PartResult | None:
        """Do the part of this process, if it is not done; None if this one is to finish now.

        Raises
        ------
        RecoverError
            As of the tasks; also if the files cannot be written.
        """
        path = self._folder / f"{self._shard.number}.journal"
        who = f"--shard {self._shard}"
        journal = Journal(path, self._work.output, who, insists=False)
        self._around.enter_context(journal)
        try:
            if get(self._done(self._shard.number)) is None:
                self._do(how, journal)
            missing = [i for i in range(1, self._shard.n + 1) if not self._done(i).exists()]
            claim = self._folder / _FINISHING
            mine = {"shard": self._shard.number}
            if not missing and (put_first(claim, mine) or get(claim) == mine):
                self._claims = True
                self._add_up()
                return None
            told = {} if missing else get(claim) or {}
            seconds, _ = self._read_done(self._shard.number)
        except OSError as error:
            raise self._error(error) from None
        n_weights = sum(self._work.units[i].n_weights for i in self._mine)
        return PartResult(
            *(self._work.output, self._shard, n_weights, seconds, tuple(missing)),
            finished_by=told.get("shard"),
        )

    def _do(self, how: HowToWork, journal: Journal) -> None:
        """Do what is left of the part, and say that it is done."""
        work = self._work
        with ExitStack() as stack:
            seconds, done = self._take_over(journal)
            outputs = self._files()
            for output in outputs:
                output.keeps = True
                output.open()
                stack.callback(output.leave)
            gathering = Gathering(work, done)
            saver = Saver(work, journal, outputs, gathering.take_finished, seconds)
            try:
                with saver.saving() as save_if_due:
                    left = [i for i in self._mine if i not in done]
                    do_tasks(work, left, outputs, gathering, how, save_if_due)
            except BaseException:
                if kept := {**done, **saver.done}:
                    self._say(f"kept for the same command: {self._amount(kept)}")
                raise
            for output in outputs:
                output.check_inputs()
                output.flush()
            sums = [[i, each.to_record()] for i, each in sorted(gathering.totals.items())]
            put(self._done(self._shard.number), {"seconds": saver.seconds, "tensors": sums})

    def _take_over(self, journal: Journal) -> tuple[float, Totals]:
        """What an earlier process wrote down of this part, as far as the bytes are there."""
        first = {"format": _FORMAT, "plan": digest_of(self._first)}
        seconds, done, digests = 0.0, {}, {}
        try:
            if journal.records[0] != first:
                raise ValueError
            for record in journal.records[1:]:
                seconds = read_seconds(record["seconds"])
                for index, sums, told in record["tensors"]:
                    if index in self._mine:
                        done[index] = self._work.read_sums(index, sums)
                        digests[index] = str(told)
        except (LookupError, TypeError, ValueError, OverflowError):
            if len(journal.records) > 1:
                self._say("starting this part over: its journal is damaged")
            journal.restart(first)
            return 0.0, {}
        if done:
            paths = [self.partial(file.path) for file in self._work.files]
            lost = damaged(self._work.units, paths, digests)
            for index in lost:
                del done[index]
            if lost:
                names = [quoted(self._work.units[index].name) for index in sorted(lost)]
                self._say(f"damaged on the disk, and made again: {some(names)}")
            self._say(f"going on with what is there: {self._amount(done)}")
        return seconds, done

    def _amount(self, done: Iterable[int]) -> str:
        units, known = self._work.units, list(done)
        share = sum(units[i].n_weights for i in known) / max(
            1, sum(units[i].n_weights for i in self._mine)
        )
        which = f"of {len(self._mine)} tensors of part {self._shard}"
        return f"{len(known)} {which}, {share:.0%} of their weights"

    def _read_done(self, number: int) -> tuple[float, Totals]:
        try:
            record = get(self._done(number))
            totals = {index: self._work.read_sums(index, sums) for index, sums in record["tensors"]}
            return read_seconds(record["seconds"]), totals
        except (LookupError, TypeError, ValueError, OverflowError):
            raise OutputError(
                f"{printable(self._done(number))}: is damaged; remove it, and do part"
                f" {number}/{self._shard.n} again"
            ) from None

    def _add_up(self) -> None:
        for number in range(1, self._shard.n + 1):
            seconds, totals = self._read_done(number)
            self.seconds += seconds
            self.totals |= totals
        if len(self.totals) != len(self._work.units):
            raise OutputError(
                f"{printable(self._work.output)}: its parts have {len(self.totals)} of"
                f" {len(self._work.units)} tensors; {self._start_over()}"
            )

    # The end.

    def announce(self, outputs: Sequence[OutputFile], **notes: Any) -> None:
        """Say what the output is going to be, before it gets its name.

        Parameters
        ----------
        outputs : sequence of OutputFile
            The files, in which all is written.
        **notes
            Plain data that a part finds which is repeated later.
        """
        for output in outputs:
            output.sync()
        found = [output.place.stat() for output in outputs]
        document = {
            "plan": self._first,
            "seconds": self.seconds,
            "tensors": [[i, each.to_record()] for i, each in sorted(self.totals.items())],
            "notes": notes,
            "files": [
                [str(output.path.resolve()), status.st_size, status.st_mtime_ns]
                for output, status in zip(outputs, found, strict=True)
            ],
        }
        try:
            put(self._marker, document)
        except OSError as error:
            raise self._error(error) from None

    def _find_complete(self) -> bool:
        """Whether the output is there, as this very plan makes it; its sums, if it is."""
        found = get(self._marker)
        try:
            if found["plan"] != self._first:
                return False
            for path, size, changed in found["files"]:
                status = Path(path).stat()
                if (status.st_size, status.st_mtime_ns) != (size, changed):
                    return False
            self.totals = {i: self._work.read_sums(i, sums) for i, sums in found["tensors"]}
            self.seconds, self.notes = read_seconds(found["seconds"]), found["notes"]
        except (LookupError, TypeError, ValueError, OverflowError, OSError):
            return False
        self._say("is complete already")
        self._clean()
        return True

    def _clean(self) -> None:
        """Remove what the processes shared, the plan last."""
        with suppress(OSError):
            if get(self._folder / _PLAN) not in (None, self._first):
                return
        for path in self._paths_of_files():
            if (folder := self._folder_beside(path)) != self._folder:
                with suppress(OSError):
                    self.partial(path).unlink(missing_ok=True)
                    folder.rmdir()
        with suppress(OSError):
            for entry in sorted(self._folder.iterdir(), key=lambda each: each.name == _PLAN):
                if entry.is_dir() and not entry.is_symlink():
                    shutil.rmtree(entry, ignore_errors=True)
                else:
                    entry.unlink(missing_ok=True)
            self._folder.rmdir()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Clean up if the output has its name; leave the rest to others after an error."""
        if self._claims and kind is None:
            self._clean()
        elif self._claims:
            with suppress(OSError):
                (self._folder / _FINISHING).unlink()
        self._around.__exit__(kind, value, traceback)

    def _say(self, what: str) -> None:
        if self._tell is not None:
            self._tell(f"{printable(self._work.output)}: {what}")

    def _error(self, error: OSError) -> OutputError:
        if self._marker.exists() and not self._folder.exists():
            return OutputError(
                f"{printable(self._work.output)}: another process with the same part has finished"
                " it meanwhile; the same command once more prints the report"
            )
        where = f" ({error.filename})" if error.filename else ""
        return OutputError(
            f"{printable(self._work.output)}: what its parts share cannot be read or written:"
            f" {error.strerror or os.strerror(error.errno or 0)}{where}"
        )
