"""Scripts with which shells complete command lines, made from the parser."""

from argparse import SUPPRESS, Action, ArgumentParser, _SubParsersAction
from collections.abc import Iterator
from dataclasses import dataclass
from shlex import quote


@dataclass(frozen=True)
class Option:
    """What a shell knows of an option, or of a positional argument.

    Attributes
    ----------
    names : tuple of str
        As given; empty for a positional argument.
    takes_value : bool
        Whether a value follows.
    choices : tuple of str
        The values, if there are few; otherwise it is a file, perhaps.
    summary : str
        One line.
    """

    names: tuple[str, ...]
    takes_value: bool
    choices: tuple[str, ...]
    summary: str


def commands(parser: ArgumentParser) -> dict[str, ArgumentParser]:
    """The commands' parsers, by name."""
    for action in parser._actions:
        if isinstance(action, _SubParsersAction):
            return dict(action.choices)
    return {}


def options(parser: ArgumentParser) -> list[Option]:
    """The options and positional arguments of a command."""
    return [
        Option(
            tuple(action.option_strings),
            not action.option_strings or action.nargs != 0,
            tuple(map(str, action.choices or ())),
            _summary(parser, action),
        )
        for action in parser._actions
        if action.help != SUPPRESS and not isinstance(action, _SubParsersAction)
    ]


def _summary(parser: ArgumentParser, action: Action) -> str:
    """The first clause of an option's help."""
    text = parser._get_formatter()._expand_help(action) if action.help else ""
    return text.partition(" (")[0].partition(";")[0].partition(":")[0]


def script_for(shell: str, parser: ArgumentParser) -> str:
    """The script of a shell: ``bash``, ``zsh`` or ``fish``."""
    lines = {"bash": _bash, "zsh": _zsh, "fish": _fish}[shell]
    title = [f"# {parser.prog}: completion for {shell}"]
    if shell == "zsh":  # in the first line of a file in `fpath`
        title.insert(0, f"#compdef {parser.prog}")
    return "\n".join([*title, *lines(parser), ""])


def _summaries(parser: ArgumentParser) -> dict[str, str]:
    return {name: (each.description or "").rstrip(".") for name, each in commands(parser).items()}


def _positional_words(name: str, parser: ArgumentParser, own: list[Option]) -> list[str]:
    """What may stand where no option does, files apart."""
    if name == "help":
        return list(commands(parser))
    return [choice for each in own if not each.names for choice in each.choices]


def _bash(parser: ArgumentParser) -> Iterator[str]:
    names = list(commands(parser))
    top = [*names, *(name for each in options(parser) for name in each.names)]
    yield "_recover() {"
    yield '    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} command="" i'
    yield "    COMPREPLY=()"
    yield "    for ((i = 1; i < COMP_CWORD; i++)); do"
    yield f'        case "${{COMP_WORDS[i]}}" in {"|".join(names)}) command=${{COMP_WORDS[i]}}'
    yield "            break;; esac"
    yield "    done"
    yield '    case "$command:$prev" in'
    for name, command in commands(parser).items():
        own = options(command)
        for each in own:
            if each.takes_value and each.names:
                patterns = "|".join(f"{name}:{option}" for option in each.names)
                words = " ".join(each.choices)
                yield f"        {patterns}) {_compgen(words) if words else ':'}; return;;"
    yield "    esac"
    yield '    case "$command:$cur" in'
    yield f"        :*) {_compgen(' '.join(top))};;"
    for name, command in commands(parser).items():
        own = options(command)
        words = " ".join(option for each in own for option in each.names)
        yield f"        {name}:-*) {_compgen(words)};;"
        if positional := _positional_words(name, parser, own):
            yield f"        {name}:*) {_compgen(' '.join(positional))};;"
    yield "    esac"
    yield "}"
    yield "complete -o default -o bashdefault -F _recover recover"


def _compgen(words: str) -> str:
    return f'COMPREPLY=($(compgen -W {quote(words)} -- "$cur"))'


def _zsh(parser: ArgumentParser) -> Iterator[str]:
    yield "_recover() {"
    yield "    local -a commands"
    listed = [quote(f"{name}:{text}") for name, text in _summaries(parser).items()]
    yield f"    commands=({' '.join(listed)})"
    yield "    if (( CURRENT == 2 )); then"
    yield "        _describe command commands"
    yield "        return"
    yield "    fi"
    yield "    local command=$words[2]"
    yield "    shift words"
    yield "    (( CURRENT-- ))"
    yield "    case $command in"
    for name, command in commands(parser).items():
        own = options(command)
        specs = [spec for each in own for spec in _zsh_specs(each)]
        words = _positional_words(name, parser, own)
        rest = f"*:word:({' '.join(words)})" if name == "help" else "*:file:_files"
        if words and name != "help":
            specs.append(f"*:file:{{_files; compadd {' '.join(words)}}}")
        else:
            specs.append(rest)
        yield f"        {name}) _arguments {' '.join(map(quote, specs))};;"
    yield "    esac"
    yield "}"
    # As a file in `fpath` this is the function itself; in ~/.zshrc nothing else may have begun.
    yield "if [[ ${funcstack[1]} == _recover ]]; then"
    yield '    _recover "$@"'
    yield "else"
    yield "    (( $+functions[compdef] )) || { autoload -Uz compinit && compinit; }"
    yield "    compdef _recover recover"
    yield "fi"


def _zsh_specs(option: Option) -> Iterator[str]:
    text = "".join(each for each in option.summary if each not in "[]:\\")
    for name in option.names:
        if not option.takes_value:
            yield f"{name}[{text}]"
        elif option.choices:
            yield f"{name}[{text}]:value:({' '.join(option.choices)})"
        else:
            yield f"{name}[{text}]:value:_files"


def _fish(parser: ArgumentParser) -> Iterator[str]:
    none = "__fish_use_subcommand"
    for name, text in _summaries(parser).items():
        yield f"complete -c recover -n {none} -f -a {name} -d {quote(text)}"
    for each in options(parser):
        yield f"complete -c recover -n {none} {_fish_option(each)}"
    for name, command in commands(parser).items():
        own = options(command)
        condition = f"'__fish_seen_subcommand_from {name}'"
        for each in own:
            if each.names:
                yield f"complete -c recover -n {condition} {_fish_option(each)}"
        if words := _positional_words(name, parser, own):
            yield f"complete -c recover -n {condition} -a {quote(' '.join(words))}"


def _fish_option(option: Option) -> str:
    parts = [
        f"-l {name.removeprefix('--')}" if name.startswith("--") else f"-s {name[1:]}"
        for name in option.names
    ]
    if option.takes_value:
        parts.append(f"-x -a {quote(' '.join(option.choices))}" if option.choices else "-r")
    return " ".join([*parts, "-d", quote(option.summary)])
