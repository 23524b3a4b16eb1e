"""Reading a page as a browser would: elements, tables, ids, and what it would load."""

import re
from dataclasses import dataclass, field
from html.parser import HTMLParser

_VOID = frozenset({"meta", "link", "br", "img", "hr", "input"})
_LOADING = frozenset(
    {"src", "href", "xlink:href", "srcset", "data", "poster", "action", "background"}
)


@dataclass
class Cell:
    """A table cell."""

    kind: str
    attributes: dict[str, str]
    text: str = ""


@dataclass
class Page(HTMLParser):
    """A page's content; `problems` says what is wrong with its structure."""

    tables: list[list[list[Cell]]] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    references: list[str] = field(default_factory=list)
    """Values of attributes that make a browser load or refer to something."""
    tags: set[str] = field(default_factory=set)
    handlers: list[str] = field(default_factory=list)
    """Attributes that hold scripts."""
    styles: str = ""
    scripts: list[tuple[dict[str, str], str]] = field(default_factory=list)
    text: str = ""
    problems: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self._open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._start(tag, attrs)
        if tag not in _VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if "svg" not in self._open:
            self.problems.append(f"<{tag}/> is not closed in HTML")
        self._start(tag, attrs)

    def _start(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in attrs}
        if len(attributes) != len(attrs):
            self.problems.append(f"<{tag}> has an attribute twice")
        self.tags.add(tag)
        self.ids += [attributes["id"]] if "id" in attributes else []
        self.references += [value for name, value in attributes.items() if name in _LOADING]
        self.references += re.findall(r"url\(([^)]*)\)", " ".join(attributes.values()))
        self.handlers += [name for name in attributes if name.startswith("on")]
        match tag:
            case "table":
                self.tables.append([])
            case "tr":
                self.tables[-1].append([])
            case "td" | "th":
                self.tables[-1][-1].append(Cell(tag, attributes))
            case "script":
                self.scripts.append((attributes, ""))

    def handle_endtag(self, tag: str) -> None:
        if not self._open or self._open.pop() != tag:
            self.problems.append(f"</{tag}> closes something else")

    def handle_data(self, data: str) -> None:
        inside = self._open[-1] if self._open else ""
        if inside == "style":
            self.styles += data
        elif inside == "script":
            attributes, text = self.scripts.pop()
            self.scripts.append((attributes, text + data))
        else:
            self.text += data
            if inside in ("td", "th"):
                self.tables[-1][-1][-1].text += data

    def finish(self) -> "Page":
        """Say what is still open."""
        self.close()
        self.problems += [f"<{tag}> is never closed" for tag in self._open]
        return self


def read_page(text: str) -> Page:
    """Parse a page."""
    page = Page()
    page.feed(text)
    return page.finish()
