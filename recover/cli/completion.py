"""``recover completion``."""

from argparse import ArgumentParser, Namespace

NAME = "completion"
SUMMARY = "Print a script with which a shell completes command lines"

_SHELLS = ("bash", "zsh", "fish")
_EPILOG = """\
put one of these lines into ~/.bashrc, ~/.zshrc or ~/.config/fish/config.fish:
  eval "$(recover completion bash)"
  eval "$(recover completion zsh)"
  recover completion fish | source
"""


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the command's arguments."""
    from argparse import RawDescriptionHelpFormatter

    parser.formatter_class = RawDescriptionHelpFormatter
    parser.epilog = _EPILOG
    parser.add_argument("shell", metavar="SHELL", choices=_SHELLS, help="bash, zsh or fish")


def run(args: Namespace) -> int:
    """Do the work; the exit status."""
    import sys

    from recover.cli._completion import script_for
    from recover.cli._streams import write

    for line in script_for(args.shell, args.parser).splitlines():
        write(sys.stdout, line)
    return 0
