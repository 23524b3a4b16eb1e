"""What README and docs tell people to type works, and prints what they say."""

import argparse
import doctest
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from recover.cli import main
from recover.cli._commands import build_parser
from tests.support.doc_blocks import PAGES, blocks, indented
from tests.support.models import ROOT

README = ROOT / "README.md"
_TIME = re.compile(r"in [\d.]+ s\b( \([\d.]+[kMG]? weights/s\))?")
_VALUE = re.compile(r"^--?[a-z]|^[A-Z]+$")


_BRACES = re.compile(r"(\S*)\{([^}\s]*)\}(\S*)")


def fenced(page: Path, language: str) -> list[str]:
    """The blocks of a page in a language that run in seconds."""
    return [each.text for each in blocks(language) if each.page == page]


def expanded(line: str) -> str:
    """Words with a list in braces as a shell expands them."""
    return _BRACES.sub(lambda m: " ".join(m[1] + each + m[3] for each in m[2].split(",")), line)


def commands(block: str) -> Iterator[tuple[list[str], str]]:
    """The words of each command of a console block, and what it prints."""
    for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
        line, _, printed = part.partition("\n")
        yield shlex.split(expanded(line)), printed.rstrip()


def table_commands() -> list[str]:
    """The commands of the README's table of files, a row's together."""
    rows = README.read_text().partition("what do I type?")[2].partition("\n## ")[0]
    found = []
    for row in rows.splitlines():
        lines = re.findall(r"`(recover [^`]*)`", row)
        if row.startswith("|") and lines:
            found.append("\n".join(lines))
    return found


def run(words: list[str]) -> int:
    assert words[0] == "recover"
    try:
        return main(words[1:])
    except SystemExit as leaving:
        return int(leaving.code or 0)


@pytest.mark.inference
@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if fenced(page, "console")],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_consoles(
    page: Path, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    for block in fenced(page, "console"):
        for words, expected in commands(block):
            assert run(words) == 0, words
            printed = _TIME.sub("TIME", capsys.readouterr().out).rstrip()
            assert printed == _TIME.sub("TIME", expected), words


@pytest.mark.parametrize("row", table_commands())
def test_every_row_of_files(
    row: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a folder of their own, with what other rows do not make."""
    for each in place.iterdir():
        (tmp_path / each.name).symlink_to(each)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "f16.gguf").unlink(missing_ok=True)
    if "verify" in row:
        assert main(["merge", "q5.gguf", "q4.gguf", "-o", "f16.gguf"]) == 0
    for line in row.splitlines():
        assert run(shlex.split(line)) == 0


def test_there_are_rows() -> None:
    assert len(table_commands()) >= 10


def test_python_in_the_readme(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    (block,) = fenced(README, "python")
    exec(block, {})
    first, second = capsys.readouterr().out.splitlines()
    assert float(first) == pytest.approx(0.7555, abs=1e-3)
    assert second.startswith("(512, 512) ")


def test_api() -> None:
    text = (ROOT / "docs" / "api.md").read_text()
    parsed = doctest.DocTestParser().get_doctest(text, {}, "api.md", "docs/api.md", 0)
    assert len(parsed.examples) > 20
    told: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    runner.run(parsed, out=told.append)
    assert runner.failures == 0, "".join(told)


def typed(page: Path) -> Iterator[str]:
    """Command lines in the blocks of a page, joined where they go on in the next line."""
    shell = [each.text for each in blocks("sh", "console", needs=None) if each.page == page]
    for text in (*shell, *indented(page)):
        for line in re.sub(r"\\\n\s*", "", text).splitlines():
            match = re.match(r"\s*(?:\$ |exec )?(?:\S*/)?(recover [a-z].*)", line)
            if match and " | " not in match[1]:
                yield match[1].partition(" > ")[0]


LINES = sorted({(page, line) for page in PAGES for line in typed(page)})


@pytest.mark.parametrize(
    ("page", "line"), LINES, ids=lambda value: value if isinstance(value, str) else value.name
)
def test_every_option_is_there(page: Path, line: str) -> None:
    """Also where files are only examples: commands, options and choices are those that exist."""
    line = re.sub(r"\[|\]|\.\.\.", " ", re.sub(r"\$\w+", "1", line.partition(" #")[0]))
    if re.search(r"\b[A-Z]{4,}\b|\|", line):  # a synopsis
        words = line.split()
        command = next(
            action for action in build_parser()._actions if isinstance(action.choices, dict)
        ).choices[words[1]]  # type: ignore[index]
        assert isinstance(command, argparse.ArgumentParser)
        known = {option for action in command._actions for option in action.option_strings}
        told = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert told <= known
        return
    build_parser().parse_args(shlex.split(line)[1:])


def anchors(page: Path) -> set[str]:
    """What links may point to in a page."""
    heads = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        other = (page.parent / path).resolve() if path else page
        assert other.exists(), target
        assert not anchor or anchor in anchors(other), target


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text()
    for page in PAGES:
        if page.parent == ROOT / "docs" and page.name != "README.md":
            assert f"({page.name})" in index, page.name
