"""The command line: one file per command; heavy imports stay inside the commands' bodies."""

import argparse
import shlex
import signal
import sys
import traceback
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn, Protocol

from recover import RecoverError, UsageError, __version__
from recover.cli import bounds, calibrate, demo, evaluate, merge, quantize, reblock, verify
from recover.cli import inspect as inspect_command
from recover.cli._parser import Parser


class Command(Protocol):
    """A command's module."""

    NAME: str
    SUMMARY: str

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        """Declare the command's arguments."""

    @staticmethod
    def run(args: argparse.Namespace) -> int:
        """Do the work; the exit status."""


_COMMANDS: tuple[Command, ...] = (  # type: ignore[assignment]
    merge,
    bounds,
    inspect_command,
    verify,
    quantize,
    evaluate,
    calibrate,
    reblock,
    demo,
)


_MOST_THREADS = 1024


class _Stopped(BaseException):
    """A signal asks for the end; not an `Exception`, so that nothing swallows it."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.strsignal(number))
        self.number = number


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status (0 done, 1 failed, 2 wrong usage)."""
    args = build_parser().parse_args(argv)
    args.command_line = shlex.join(["recover", *(sys.argv[1:] if argv is None else argv)])
    _catch_signals()
    try:
        status: int = args.run(args)
        sys.stdout.flush()
    except RecoverError as error:
        if args.debug:
            _show_traceback()
        return _fail(str(error), 2 if isinstance(error, UsageError) else 1)
    except _Stopped as stop:
        left = "" if getattr(args, "resume", False) else "; nothing was left behind"
        print(f"recover: stopped ({stop}){left}", file=sys.stderr)
        return 128 + stop.number
    except BrokenPipeError:
        sys.stderr.close()  # whoever read our output has gone
        return 1
    except Exception as error:
        if args.debug:
            _show_traceback()
        return _fail(f"{type(error).__name__}: {error} (unexpected; --debug shows where)")
    return status


def _fail(message: str, status: int = 1) -> int:
    from recover.cli._console import complain

    complain(f"recover: error: {' '.join(message.split())}")
    return status


def _show_traceback() -> None:
    from recover.cli._console import complain

    for line in traceback.format_exc().splitlines():
        complain(line)


def _catch_signals() -> None:
    """Let the first signal unwind the stack, so that temporary files go; ignore further ones."""

    def stop(number: int, _frame: FrameType | None) -> NoReturn:
        for each in caught:
            signal.signal(each, signal.SIG_IGN)
        raise _Stopped(number)

    caught = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
    for number in caught:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as set by nohup
            signal.signal(number, stop)


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = Parser(
        prog="recover",
        description="The best possible full-precision weights from the quantizations of a model.",
    )
    parser.add_argument("--version", action="version", version=f"recover {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in _COMMANDS:
        sub = commands.add_parser(
            command.NAME, help=command.SUMMARY, description=f"{command.SUMMARY}."
        )
        command.add_arguments(sub)
        _add_common(sub)
        sub.set_defaults(run=command.run)
    return parser


def _add_common(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("common options")
    group.add_argument(
        "--threads",
        type=_thread_count,
        metavar="N",
        help="number of threads (default: the cores that this process may use)",
    )
    group.add_argument(
        "-q", "--quiet", action="store_true", help="nothing on stderr: no progress, no messages"
    )
    group.add_argument("-v", "--verbose", action="store_true", help="tell more")
    group.add_argument("--debug", action="store_true", help="show a traceback on errors")
    group.add_argument("--version", action="version", version=f"recover {__version__}")


def _thread_count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= _MOST_THREADS:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 to {_MOST_THREADS}")
    return int(text)
