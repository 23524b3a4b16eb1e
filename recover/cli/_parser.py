"""Command lines: what is close to right is understood or named, and an error takes two lines.

Errors repeat what was given, so they are escaped like all that is printed.
"""

import sys
from argparse import SUPPRESS, Action, ArgumentError, ArgumentParser, Namespace, _SubParsersAction
from collections.abc import Iterable, Sequence
from itertools import takewhile
from typing import Any, NoReturn

from recover._text import escaped, shortened
from recover._version import __version__
from recover.cli._streams import drop

_LONGEST = 1000
_MISSING = "the following arguments are required"  # as argparse says it
_MOST_NAMED = 3


class Parser(ArgumentParser):
    """A parser that takes choices in any case of letters, and says what may have been meant."""

    given: Sequence[str] = ()

    def error(self, message: str) -> NoReturn:
        """Print the error and the usage on stderr, a line each, and leave with status 2.

        Where something is missing, an option that nobody knows may have been meant to give it.
        """
        if message.startswith(_MISSING):
            message += self._of_unknown_option()
        usage = f"usage: {_usage(self)} (more: {self.prog} --help)"
        try:
            for line in (f"recover: error: {message}", usage):
                self._print_message(f"{shortened(escaped(line), _LONGEST)}\n", sys.stderr)
        except OSError:  # of stderr
            drop(sys.stderr)
        self.exit(2)

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Namespace | None = None
    ) -> tuple[Namespace, list[str]]:
        """As of `argparse`, but what nobody knows is an error at once, with what may be meant."""
        self.given = list(sys.argv[1:] if args is None else args)
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            options = [name for name in unknown if name.startswith("-") and name != "-"]
            known = [name for action in self._actions for name in action.option_strings]
            hint = did_you_mean(options[0].partition("=")[0], known) if options else ""
            self.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
        return found, unknown

    def _of_unknown_option(self) -> str:
        """``; there is no option --outptu; did you mean --output?``, if one was given."""
        known = [name for action in self._actions for name in action.option_strings]
        for word in takewhile(lambda each: each != "--", self.given):
            name = word.partition("=")[0]
            if name.startswith("--") and not any(each.startswith(name) for each in known):
                return f"; there is no option {name}{did_you_mean(name, known)}"
        return ""

    def _get_value(self, action: Action, arg_string: str) -> Any:
        """A value, as one of the choices is spelt."""
        value = super()._get_value(action, arg_string)
        choices = action.choices
        if choices is None or not isinstance(value, str) or value in choices:
            return value
        alike = [each for each in choices if str(each).lower() == value.lower()]
        return alike[0] if len(alike) == 1 else value

    def _check_value(self, action: Action, value: Any) -> None:
        """Refuse what is no choice."""
        if action.choices is None or value in action.choices:
            return
        names = [str(each) for each in action.choices]
        what = "command" if isinstance(action, _SubParsersAction) else "choice"
        told = f"there is no {what} {value!r}{did_you_mean(str(value), names)}"
        raise ArgumentError(action if what == "choice" else None, choose(told, names))

    def _print_message(self, message: str, file: Any = None) -> None:
        """Print; newer versions of `argparse` hide that it cannot be done."""
        if message:
            (file or sys.stderr).write(message)

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        """Leave once all that was printed (the help, the version) is out.

        Raises
        ------
        OSError
            If it cannot be printed.
        """
        sys.stdout.flush()
        super().exit(status, message)


def _usage(parser: ArgumentParser) -> str:
    """A command with what it must be given, on one line."""
    words = [parser.prog]
    has_options = False
    for action in parser._actions:
        name = str(action.metavar or action.dest).upper()
        if not action.option_strings:
            words.append(f"{name}..." if action.nargs == "+" else name)
        elif action.required:
            words += [action.option_strings[0], name]
        else:
            has_options = has_options or action.help != SUPPRESS
    return " ".join([*words, *(["[OPTION]..."] if has_options else [])])


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """``; did you mean --method?``, if any of some names is spelt like this one; else nothing."""
    from difflib import get_close_matches

    by_lower = {each.lower(): each for each in known}
    near = [by_lower[each] for each in get_close_matches(name.lower(), by_lower, _MOST_NAMED)]
    return f"; did you mean {' or '.join(near)}?" if near else ""


def choose(told: str, names: Iterable[str]) -> str:
    """What is wrong with a word, a question perhaps, and the words that there are."""
    return f"{told}{' Take' if told.endswith('?') else '; take'} one of {', '.join(names)}"


class Version(Action):
    """``--version``; with ``--verbose`` also what a report of a bug should tell."""

    def __init__(self, option_strings: Sequence[str], dest: str = SUPPRESS) -> None:
        super().__init__(
            option_strings,
            dest=dest,
            nargs=0,
            default=SUPPRESS,
            help="print the version (with --verbose: and what it runs on), and leave",
        )

    def __call__(
        self,
        parser: ArgumentParser,
        namespace: Namespace,
        values: object,
        option_string: str | None = None,
    ) -> None:
        """Print it, and leave."""
        lines = [f"recover {__version__}"]
        if isinstance(parser, Parser) and {"-v", "--verbose"} & set(parser.given):
            from recover.cli._surroundings import surroundings

            lines += surroundings()
        sys.stdout.write("".join(f"{escaped(line)}\n" for line in lines))
        parser.exit()
