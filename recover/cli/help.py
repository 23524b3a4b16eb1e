"""``recover help``."""

from argparse import ArgumentParser, Namespace

NAME = "help"
SUMMARY = "Tell what a command does"


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "command", metavar="COMMAND", nargs="?", help="of which one (default: list all)"
    )


def run(args: Namespace) -> int:
    """Do the work; the exit status."""
    args.parser.parse_args(["--help"] if args.command is None else [args.command, "--help"])
    return 0
