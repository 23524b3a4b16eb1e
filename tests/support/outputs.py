"""Output written by us, and by processes that die of it."""

from pathlib import Path

from recover.execution.output import OutputFile

OLD, NEW = b"what was there before", bytes(range(256)) * 64
REPOSITORY = Path(__file__).parents[2]


def check_untouched(path: Path, before: bytes | None) -> None:
    """The old file is as it was, and nothing else is left in the folder."""
    assert (path.read_bytes() if path.exists() else None) == before
    assert [other.name for other in path.parent.iterdir()] == [path.name] * (before is not None)


def write(path: Path, content: bytes = NEW, inputs: tuple[Path, ...] = ()) -> None:
    with OutputFile(path, len(content), inputs) as output:
        half = len(content) // 2
        output.write_at(half, content[half:])
        output.write_at(0, content[:half])


# When the process dies.

CHILD = """
import os, signal, sys
from pathlib import Path
from recover.execution.publish import hidden
from recover.execution.temporary import tell_of_removals
from recover.execution.output import OutputFile, OutputFiles

path, number, moment = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]

def die(*_arguments):
    os.kill(os.getpid(), number)
    signal.pause()

signal.signal(signal.SIGINT, signal.default_int_handler)  # a parent may have it ignored
with OutputFile(path, 100) as output:
    output.write_at(0, b"x" * 50)
    if moment == "write":
        die()
    output.write_at(50, b"x" * 50)
    if moment != "never":
        setattr(os, moment, die)
"""
