"""The code blocks of README and docs, and a shell that runs those of the shell."""

import os
import re
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.support.models import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
_FENCED = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INDENTED = re.compile(r"(?:^|\n\n)((?: {4}[^\n]*(?:\n|$))+)")


class Block(NamedTuple):
    """A fenced block.

    Attributes
    ----------
    page : Path
    language : str
        ``console`` (commands and what they print), ``sh``, ``python``, ``toml`` or ``json``.
    needs : str
        What follows the language: empty if it runs in seconds; ``slow`` if it takes minutes or
        large packages; ``slurm`` and ``gpu`` if it takes what no test has.
    text : str
    """

    page: Path
    language: str
    needs: str
    text: str

    @property
    def label(self) -> str:
        """Page and first words."""
        return f"{self.page.relative_to(ROOT)}: {self.text.splitlines()[0][:40]}"


def blocks(*languages: str, needs: str | None = "") -> list[Block]:
    """The fenced blocks of all pages in these languages (none: all), with that need (None: any)."""
    found = []
    for page in PAGES:
        for info, text in _FENCED.findall(page.read_text()):
            language, _, need = info.partition(" ")
            if (not languages or language in languages) and needs in (None, need):
                found.append(Block(page, language, need, text))
    return found


def indented(page: Path) -> Iterator[str]:
    """The indented blocks of a page: formulas, figures, synopses."""
    yield from _INDENTED.findall(_FENCED.sub("", page.read_text()))


_STUB = """#!/bin/bash
{}
"""
_STUBS = {
    "recover": 'exec "{python}" -m recover "$@"',
    # Environments are not made, and packages not installed, by a test: they are here.
    "python": '[[ "$*" == "-m venv .venv" ]] || exec "{python}" "$@"',
    "python3": '[[ "$*" == "-m venv .venv" ]] || exec "{python}" "$@"',
    "pip": '[[ "$1" == install ]]',
    # Slurm's, on this machine: the options before the command are dropped.
    "srun": 'while [[ "$1" == -* ]]; do shift 2; done; exec "$@"',
    "dask": 'exec "{python}" -m distributed.cli.dask_"$1" "${{@:2}}"',
}


def run_shell(text: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a block by bash in a folder, each command of which has to succeed.

    ``.venv/bin`` is made there: `recover` and ``python`` are those of this process, ``pip`` and
    the making of environments do nothing.
    """
    place = folder / ".venv" / "bin"
    place.mkdir(parents=True, exist_ok=True)
    python = environment.pop("python", sys.executable)
    for name, body in _STUBS.items():
        (place / name).write_text(_STUB.format(body.format(python=python)))
        (place / name).chmod(stat.S_IRWXU)
    paths = f"{place}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PATH": paths, "PYTHONPATH": str(ROOT), **environment},
    )
