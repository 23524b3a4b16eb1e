"""What an object is in a few words: short in a terminal, a table in a notebook.

The fields of a plan are megabytes of text. Its classes say what matters of them instead.
"""

from collections.abc import Iterator, Sequence
from html import escape
from itertools import islice

from recover._text import escaped, shortened

_LONGEST = 200
_MOST_ROWS = 20


class Brief:
    """Something with a short `repr`, and a table for notebooks.

    Classes give `facts`, and `rows` where they consist of many things. A dataclass is declared
    with ``repr=False``.
    """

    def facts(self) -> Iterator[tuple[str, object]]:
        """What matters, by name."""
        raise NotImplementedError

    def rows(self) -> Iterator[Sequence[object]]:
        """A header, and a row for each thing that it consists of; nothing by default."""
        yield from ()

    def __repr__(self) -> str:
        told = ", ".join(f"{name}={_shown(value)}" for name, value in self.facts())
        return f"<{type(self).__name__}: {told}>"

    def _repr_html_(self) -> str:
        """The same for notebooks, with the first rows."""
        lines = [f"<b>{type(self).__name__}</b>", "<table>"]
        lines += [_row("td", (f"{name}", _shown(value))) for name, value in self.facts()]
        lines.append("</table>")
        rows = self.rows()
        if header := next(rows, None):
            lines += ["<table>", _row("th", header)]
            lines += [_row("td", row) for row in islice(rows, _MOST_ROWS)]
            lines.append("</table>")
            if n_more := sum(1 for _ in rows):
                lines.append(f"<p>and {n_more:,} more</p>")
        return "\n".join(lines)


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return shortened(escaped(str(value)), _LONGEST)


def _row(tag: str, cells: Sequence[object]) -> str:
    shown = "".join(f"<{tag}>{escape(_shown(cell))}</{tag}>" for cell in cells)
    return f"<tr>{shown}</tr>"
