"""Processes that share the work, and die of it."""

import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest

from recover.execution.saving import Saver
from recover.execution.shares import Shard
from recover.execution.sharing import Sharing

Act = Callable[[], object]


def parts(n: int) -> list[Shard]:
    """All parts of so many."""
    return [Shard(i, n) for i in range(1, n + 1)]


def contents(folder: Path) -> dict[str, bytes]:
    """All visible files of a folder, and of folders in it, by their paths."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(part.startswith(".") for part in path.parts)
    }


def hidden(folder: Path) -> list[str]:
    """Names of what is hidden in a folder."""
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


def figures(document: dict[str, Any]) -> dict[str, Any]:
    """What is reported, apart from the time and the folder."""
    left_out = ("seconds", "weights_per_second", "output")
    return {key: value for key, value in document.items() if key not in left_out}


def in_a_process(act: Act) -> int:
    """Do something in a process of its own; its exit status, or less than 0 if it was killed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # nothing waits for other threads
        child = os.fork()
    if not child:
        status = 1
        try:
            act()
            status = 0
        except BaseException:
            traceback.print_exc(file=sys.__stderr__)
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def die(*_arguments: object, **_options: object) -> NoReturn:
    """End this process as the kernel ends it."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def dies_at_save(patch: pytest.MonkeyPatch) -> None:
    """When the first tensors are written down."""
    save = Saver._save

    def save_and_die(saver: Saver) -> None:
        save(saver)
        if saver.done:
            die()

    patch.setattr(Saver, "_save", save_and_die)
    patch.setattr(Saver, "_save_if_due", save_and_die)


MOMENTS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "written down": dies_at_save,
    "done": lambda patch: patch.setattr("recover.execution.sharing.put", die),
}
"""When any process can die."""

LAST_MOMENTS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "claimed": lambda patch: patch.setattr(Sharing, "_add_up", die),
    "filled": lambda patch: patch.setattr(Sharing, "announce", die),
    "announced": lambda patch: patch.setattr("recover._stopping.undivided", die),
    "named": lambda patch: patch.setattr(Sharing, "_clean", die),
}
"""When the last one can."""
