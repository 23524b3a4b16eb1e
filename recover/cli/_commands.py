"""The commands together: the parser, and how a command ends."""

import argparse
import shlex
import sys
import traceback
from collections.abc import Sequence
from typing import Protocol

from recover import RecoverError, UsageError
from recover import _stopping as stopping
from recover.cli import (
    bounds,
    calibrate,
    completion,
    demo,
    evaluate,
    export,
    merge,
    quantize,
    reblock,
    train_set,
    verify,
)
from recover.cli import help as help_command
from recover.cli import inspect as inspect_command
from recover.cli._inputs import check_inputs, forget_inputs
from recover.cli._parser import Parser, Version
from recover.cli._signals import Signals, last_line
from recover.cli._streams import be_quiet, complain, drop, is_of_a_stream, open_closed_streams
from recover.execution.temporary import tell_of_removals


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
    train_set,
    reblock,
    export,
    demo,
    help_command,
    completion,
)


_MOST_THREADS = 1024


def run(argv: Sequence[str] | None) -> int:
    """Run the command line; the exit status as of `recover.cli.main`."""
    open_closed_streams()
    with Signals():
        try:
            status = _command(argv)
        except stopping.Stopped as stop:
            complain(f"recover: {last_line(stop.number)}")
            status = 128 + stop.number
        else:
            if stopping.is_requested():  # in the meantime, or what failed was due to it
                complain(f"recover: {last_line(stopping.number())}")
                status = 128 + stopping.number()
        return _printed(status)


def _command(argv: Sequence[str] | None) -> int:
    """Understand the command line, and do what it says."""
    try:
        parser = build_parser()
        args = parser.parse_args(argv)
        if "run" not in args:
            parser.print_help()
            return 0
        stopping.check()
        args.parser, args.verbose = parser, args.verbose or args.tells_more
        be_quiet(args.quiet)
        args.command_line = shlex.join(["recover", *(sys.argv[1:] if argv is None else argv)])
        tell_of_removals(None if args.quiet else lambda text: complain(f"recover: {text}"))
        return _outcome(args)
    except OSError as error:
        if not is_of_a_stream(error):
            raise
        return _unprinted(error)


def _outcome(args: argparse.Namespace) -> int:
    """The exit status; an input that was changed meanwhile explains every error."""
    forget_inputs()
    try:
        try:
            status: int = args.run(args)
        finally:
            check_inputs()
    except RecoverError as error:
        if args.debug:
            _show_traceback()
        return _fail(str(error), 2 if isinstance(error, UsageError) else 1)
    except Exception as error:
        if is_of_a_stream(error):
            raise
        if args.debug:
            _show_traceback()
        return _fail(f"{type(error).__name__}: {error} (unexpected; --debug shows where)")
    return status


def _printed(status: int) -> int:
    """The exit status, once all is printed; what failed before counts first."""
    try:
        sys.stdout.flush()
    except OSError as error:
        return _unprinted(error) if status == 0 else _given_up(status)
    return status


def _unprinted(error: OSError) -> int:
    """The exit status of what cannot print: whoever closes a pipe has read enough."""
    if isinstance(error, BrokenPipeError):
        return _given_up(0)
    return _given_up(_fail(f"the results cannot be printed: {error.strerror}"))


def _given_up(status: int) -> int:
    drop(sys.stdout)
    return status


def _fail(message: str, status: int = 1) -> int:
    complain(f"recover: error: {' '.join(message.split())}")
    return status


def _show_traceback() -> None:
    for line in traceback.format_exc().splitlines():
        complain(line)


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = Parser(
        prog="recover",
        description="The best possible full-precision weights from the quantizations of a model.",
    )
    # For `--version --verbose`; a command has its own.
    parser.add_argument(
        "-v", "--verbose", dest="tells_more", action="store_true", help=argparse.SUPPRESS
    )
    parser.add_argument("--version", action=Version)
    commands = parser.add_subparsers(metavar="COMMAND")
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
        "-q",
        "--quiet",
        action="store_true",
        help="print nothing but errors (and what --json prints)",
    )
    group.add_argument("-v", "--verbose", action="store_true", help="tell more")
    group.add_argument("--debug", action="store_true", help="show a traceback on errors")
    group.add_argument("--version", action=Version)


def _thread_count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= _MOST_THREADS:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 to {_MOST_THREADS}")
    return int(text)
