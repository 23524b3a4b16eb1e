"""A report on an evaluation: one HTML page that needs nothing but a browser.

Styles and pictures are part of the page and there are no scripts, so that it opens without a
network. Table cells carry the full figure in ``data-value``, and the whole document that
``recover evaluate --json`` prints is embedded, so that programs can read the page, too.
"""

import io
import json
import platform
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from html import escape
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from recover._json import finite
from recover._text import printable
from recover._version import __version__
from recover.evaluate.pictures import Picture, short_names
from recover.execution.output import OutputFile, check_output_path

_PACKAGES = ("numpy", "numba", "scipy", "matplotlib")
_INFERENCE = "xllamacpp"
"""The package that brings llama.cpp."""

_ABOUT_ERRORS = (
    "Of the decoded weights against those of the original, in units of the weights, over the"
    " tensors that are compared. SQNR is the mean square of the weights over that of the errors."
)

_ERRORS = {
    "n_weights": ("weights", "{:,}"),
    "rmse": ("rmse", "{:.4g}"),
    "mse": ("mse", "{:.4g}"),
    "max_abs_error": ("max", "{:.4g}"),
    "p95_abs_error": ("p95", "{:.4g}"),
    "median_abs_error": ("median", "{:.4g}"),
    "sqnr_db": ("SQNR dB", "{:.2f}"),
    "exact_fraction": ("exact", "{:.2%}"),
}
"""Figures of errors: their names in the document, their headings and layouts."""

_DIVERGENCES = {
    "n_tokens": ("scored tokens", "{:,}"),
    "mean_kld": ("KL divergence (nats), mean", "{:.6f}"),
    "mean_kld_ci99": ("KL divergence, 99% interval of the mean", "{:.6f}"),
    "kld_median": ("KL divergence, median", "{:.6f}"),
    "kld_p90": ("KL divergence, 90%", "{:.6f}"),
    "kld_p95": ("KL divergence, 95%", "{:.6f}"),
    "kld_p99": ("KL divergence, 99%", "{:.6f}"),
    "kld_p999": ("KL divergence, 99.9%", "{:.6f}"),
    "kld_max": ("KL divergence, largest", "{:.6f}"),
    "rms_delta_p": ("change of the right token's probability, rms", "{:.4%}"),
    "same_top": ("same most likely token", "{:.2%}"),
    "top1_in_top5": ("original's most likely in the first 5", "{:.2%}"),
    "top1_in_top10": ("original's most likely in the first 10", "{:.2%}"),
    "ppl": ("perplexity", "{:.4f}"),
    "ppl_truth": ("perplexity of the original", "{:.4f}"),
    "ln_ppl_ratio": ("logarithm of the ratio of perplexities", "{:.6f}"),
    "ln_ppl_ratio_se": ("its standard error", "{:.6f}"),
    "paired.mean_kld_difference": ("KL divergence, mean minus the first model's", "{:.6f}"),
    "paired.mean_kld_difference_ci99": ("99% interval of that, by token", "{:.6f}"),
    "paired.mean_kld_difference_ci99_by_chunk": (
        "99% interval of that, by chunk",
        "{:.6f}",
    ),
    "paired.mean_kld_ratio": ("KL divergence, mean over the first model's", "{:.4f}"),
}


@dataclass(frozen=True)
class Provenance:
    """What a report was made with."""

    command: str
    """The command line."""
    versions: Mapping[str, str]
    """Of the programs and libraries that took part, by name."""

    @classmethod
    def of(cls, command: str, *, inference: bool = False) -> "Provenance":
        """That of the running process, perhaps with llama.cpp."""
        packages = (*_PACKAGES, *([_INFERENCE] if inference else []))
        versions = {"recover": __version__, "Python": platform.python_version()}
        for package in packages:
            with suppress(PackageNotFoundError):  # that of an extra, which took no part
                versions[package] = version(package)
        return cls(command, versions)


def write_report(
    path: Path,
    document: Mapping[str, Any],
    pictures: Iterable[Picture],
    provenance: Provenance,
    inputs: Iterable[Path] = (),
) -> None:
    """Write the page; it appears under its name only when it is complete.

    Parameters
    ----------
    path : Path
        The HTML file.
    document : mapping
        What ``recover evaluate --json`` prints.
    pictures : iterable of Picture
        From `draw_pictures`.
    provenance : Provenance
        What the evaluation was made with.
    inputs : iterable of Path
        Files that must not be overwritten.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    inputs = list(inputs)
    check_output_path(path, inputs)  # before the work
    page = render_report(document, pictures, provenance).encode()
    with OutputFile(path, len(page), inputs) as output:
        output.write_at(0, page)


def render_report(
    document: Mapping[str, Any], pictures: Iterable[Picture], provenance: Provenance
) -> str:
    """The page itself; parameters as those of `write_report`."""
    document = finite(document)
    models: Sequence[Mapping[str, Any]] = document["models"]
    names = short_names([model["path"] for model in models])
    title = f"Compared with {Path(document['truth']).name}"
    parts = [
        f"<h1>{_text(title)}</h1>",
        f'<p class="result">{_text(result_of(names, models))}</p>',
        "<h2>Errors of the weights</h2>",
        f"<p>{_ABOUT_ERRORS}</p>",
        _summary(names, models),
        *_divergences(names, models),
        "<h2>Pictures</h2>",
        '<div class="pictures">',
        *(_figure(number, picture) for number, picture in enumerate(pictures, 1)),
        "</div>",
        "<h2>Tensors</h2>",
        *(_tensors(name, model) for name, model in zip(names, models, strict=True)),
        "<h2>How this was made</h2>",
        _made(document, provenance),
        f'<script type="application/json" id="document">{_json(document)}</script>',
    ]
    page = Template((files("recover.evaluate") / "report.html").read_text(encoding="utf-8"))
    return page.substitute(title=_text(title), body="\n".join(parts))


def result_of(names: Sequence[str], models: Sequence[Mapping[str, Any]]) -> str:
    """One sentence with the result: which model is the closest, and by how much.

    Parameters
    ----------
    names : sequence of str
        What the models are called.
    models : sequence of mapping
        Theirs, of the document that ``recover evaluate --json`` prints.
    """
    errors = [model["total"]["mse"] for model in models]
    kl = [(model["divergence"] or {}).get("mean_kld") for model in models]
    best = min(range(len(models)), key=lambda i: errors[i])
    share = f"{errors[best] / errors[0]:.1%}" if errors[0] else "-"
    if len(models) == 1:
        rmse = models[0]["total"]["rmse"]
        text = f"{names[0]} is off by {rmse:.4g} (root mean square of the weights' errors)"
        return text + (
            f", and diverges by {kl[0]:.4g} nats per token." if kl[0] is not None else "."
        )
    if best == 0:
        return f"Of {len(models)} models {names[0]} has the smallest errors of the weights."
    text = f"{names[best]} has {share} of the mean square error of {names[0]}"
    if kl[0] and kl[best] is not None:
        text += f", and {kl[best] / kl[0]:.1%} of its mean KL divergence from the original"
    return f"{text}."


def _text(text: str) -> str:
    """Text from a file or path, harmless and visible."""
    return escape(printable(text))


def _json(document: Mapping[str, Any]) -> str:
    """The document for a script element, which would end at the first ``</script``."""
    return json.dumps(document, allow_nan=False).replace("<", "\\u003c").replace(">", "\\u003e")


def _cell(value: Any, layout: str) -> str:
    """A table cell: rounded for people, with the full figure for programs."""
    exact = json.dumps(value)
    if value is None:
        shown = "-"
    elif isinstance(value, list):
        shown = " to ".join(layout.format(each) for each in value)
    else:
        shown = layout.format(value)
    kind = ' class="range"' if isinstance(value, list) else ""
    return f'<td{kind} data-value="{exact}" title="{exact}">{shown}</td>'


def _table(head: Iterable[str], rows: Iterable[str]) -> str:
    # Wide tables scroll by themselves, also with the keyboard.
    return (
        f'<div class="scroll" tabindex="0"><table><thead><tr>{"".join(head)}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _heads(names: Iterable[str]) -> list[str]:
    return [f'<th scope="col">{name}</th>' for name in names]


def _error_heads() -> list[str]:
    return [f'<th scope="col" data-key="{key}">{name}</th>' for key, (name, _) in _ERRORS.items()]


def _error_cells(errors: Mapping[str, Any]) -> str:
    return "".join(_cell(errors[key], layout) for key, (_, layout) in _ERRORS.items())


def _summary(names: Sequence[str], models: Sequence[Mapping[str, Any]]) -> str:
    first = models[0]["total"]["mse"]
    rows = []
    for name, model in zip(names, models, strict=True):
        ratio = f"{model['total']['mse'] / first:.4f}" if first else "-"
        rows.append(
            f'<tr><th scope="row" title="{_text(model["path"])}">{_text(name)}</th>'
            f"{_error_cells(model['total'])}<td>{ratio}</td></tr>"
        )
    return _table([*_heads(["model"]), *_error_heads(), *_heads(["mse / first"])], rows)


def _divergences(names: Sequence[str], models: Sequence[Mapping[str, Any]]) -> list[str]:
    """A figure in each row, a model in each column; nothing if no divergence was measured."""
    measured = [
        (name, _flat(model["divergence"]))
        for name, model in zip(names, models, strict=True)
        if model["divergence"] is not None
    ]
    if not measured:
        return []
    there = {key for _, divergence in measured for key in divergence}
    rows = []
    for key in [
        *(each for each in _DIVERGENCES if each in there),
        *sorted(there - _DIVERGENCES.keys()),
    ]:
        name, layout = _DIVERGENCES.get(key, (key, "{}"))
        cells = [_cell(divergence.get(key), layout) for _, divergence in measured]
        head = f'<th scope="row" data-key="{escape(key)}">{escape(name)}</th>'
        rows.append(f"<tr>{head}{''.join(cells)}</tr>")
    return [
        "<h2>Divergence on text</h2>",
        "<p>How differently each model and the original continue the same text.</p>",
        _table(_heads(["", *(_text(name) for name, _ in measured)]), rows),
    ]


def _flat(document: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested figures under dotted names."""
    figures: dict[str, Any] = {}
    for key, value in document.items():
        nested = isinstance(value, dict)
        figures |= _flat(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return figures


def _figure(number: int, picture: Picture) -> str:
    return (
        f'<figure id="{picture.name}"><h3>{escape(picture.title)}</h3>'
        f"{inline_svg(picture, f'p{number}-')}"
        f"<figcaption>{escape(picture.caption)}</figcaption></figure>"
    )


def inline_svg(picture: Picture, prefix: str) -> str:
    """A picture as part of a page: text stays text, in the page's own colour.

    Parameters
    ----------
    picture : Picture
        The picture.
    prefix : str
        For the ids in it, which must be unique in the page.

    Returns
    -------
    str
        An ``svg`` element without references to anything outside of it.
    """
    from matplotlib import rc_context

    from recover.evaluate.plots import INK

    buffer = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "recover"}):
        picture.figure.savefig(
            buffer,
            format="svg",
            transparent=True,
            metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
        )
    svg = buffer.getvalue()
    drawing = svg[svg.index(">", svg.index("<svg")) + 1 :]
    view = re.search(r'viewBox="[-\d. ]+"', svg)
    drawing = re.sub(r"<metadata>.*?</metadata>", "", drawing, flags=re.DOTALL)
    drawing = re.sub(r' id="', f' id="{prefix}', drawing)
    drawing = re.sub(r"url\(#", f"url(#{prefix}", drawing)
    drawing = re.sub(r'xlink:href="#', f'href="#{prefix}', drawing)
    drawing = drawing.replace(INK.lower(), "currentColor")
    head = f'<svg {view[0] if view else ""} role="img" aria-label="{escape(picture.title)}">'
    return head + drawing.strip()


def _tensors(name: str, model: Mapping[str, Any]) -> str:
    rows = [
        f'<tr><th scope="row">{_text(tensor["name"])}</th><td>{_text(tensor["type"])}</td>'
        f"{_error_cells(tensor)}</tr>"
        for tensor in model["tensors"]
    ]
    table = _table([*_heads(["tensor", "type"]), *_error_heads()], rows)
    return f"<details><summary>{_text(name)}: {len(rows)} tensors</summary>{table}</details>"


def _made(document: Mapping[str, Any], provenance: Provenance) -> str:
    lines = [("Command", provenance.command), ("Original", document["truth"])]
    lines += [("Model", model["path"]) for model in document["models"]]
    lines += list(provenance.versions.items())
    rows = "".join(f"<dt>{_text(name)}</dt><dd>{_text(value)}</dd>" for name, value in lines)
    return f"<dl>{rows}</dl>"
