"""The report: self-contained, harmless whatever names hold, and its figures are those of JSON."""

import json
import re
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest

import recover
from recover import OutputError, evaluate_models
from recover.cli import main
from recover.evaluate.divergence import compare_with_first, summarize
from recover.evaluate.histograms import collect_distributions
from recover.evaluate.pictures import draw_pictures
from recover.evaluate.report import Provenance, render_report, result_of, write_report
from tests.support.gguf_files import stored, write_gguf
from tests.support.html_pages import Page, read_page
from tests.support.models import TINY
from tests.support.pictures import NAMES, per_token
from tests.support.reports import ERRORS, check_figures, embedded

HOSTILE = "</script><img src=x onerror=alert(1)>'\"&amp;${body}$title\\u003c\n\x1b[31m模型"


def check_contained(page: Page, text: str) -> None:
    """Well-formed, and nothing in it that a browser would load or run."""
    assert page.problems == []
    assert len(set(page.ids)) == len(page.ids)
    targets = {f"#{each}" for each in page.ids}
    assert set(page.references) <= targets | {"data:,"}
    assert any(each.startswith("#") for each in page.references)
    assert page.handlers == []
    assert not page.tags & {"img", "image", "iframe", "object", "embed", "base", "form"}
    assert [attributes["type"] for attributes, _ in page.scripts] == ["application/json"]
    assert "url(" not in page.styles
    assert "@import" not in page.styles
    assert not re.search(r"(?i)https?:", text)


def test_report_option(
    tiny: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "report.html"
    command = ["evaluate", *map(str, tiny[:2]), "--truth", str(TINY), "--json"]
    assert main([*command, "--report", str(out)]) == 0
    printed = capsys.readouterr()
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    text = out.read_text(encoding="utf-8")
    page = read_page(text)
    check_contained(page, text)
    check_figures(page, json.loads(printed.out))
    assert [each for each in page.ids if each in NAMES] == NAMES
    assert f"recover {' '.join(command)} --report {out}" in page.text
    for package in ("numpy", "numba", "scipy", "matplotlib"):
        assert re.search(rf"{package}\s*{re.escape(version(package))}", page.text)
    assert re.search(rf"recover\s*{re.escape(recover.__version__)}", page.text)
    assert "xllamacpp" not in page.text


def test_divergence_in_the_report(tiny: list[Path], rng: np.random.Generator) -> None:
    results = evaluate_models(tiny[1:], TINY)
    first, *others = (summarize(per_token(700, rng)) for _ in results)
    measured = [first, *(compare_with_first(each, first) for each in others)]
    results = [replace(r, divergence=d) for r, d in zip(results, measured, strict=True)]
    document = {"truth": str(TINY), "models": [each.to_json() for each in results]}
    pictures = list(draw_pictures(results, collect_distributions(results, TINY)))
    provenance = Provenance.of("recover evaluate", inference=True)
    text = render_report(document, pictures, provenance)
    page = read_page(text)
    check_contained(page, text)
    check_figures(page, document)
    assert [each for each in page.ids if each in NAMES or each.startswith("divergence")] == [
        *NAMES,
        "divergence-per-token",
        "divergence-by-position",
    ]
    assert re.search(rf"xllamacpp\s*{re.escape(version('xllamacpp'))}", page.text)


def test_hostile_names(tmp_path: Path, rng: np.random.Generator) -> None:
    x = rng.normal(0, 1, (8, 256)).astype(np.float32)
    folder = tmp_path / "<b>$title"
    folder.mkdir()
    truth = write_gguf(tmp_path / "${body}<i>.gguf", {HOSTILE: stored("F32", x)})
    path = write_gguf(folder / "'\"><script>alert(1)<!--.gguf", {HOSTILE: stored("Q4_K", x)})
    odd = tmp_path / "bytes-\udcff.gguf"  # no UTF-8
    odd.write_bytes(path.read_bytes())
    results = evaluate_models([path, odd], truth)
    document = {"truth": str(truth), "models": [each.to_json() for each in results]}
    pictures = draw_pictures(results, collect_distributions(results, truth))
    out = tmp_path / "report.html"
    write_report(out, document, pictures, Provenance.of(f"recover {path}"))
    text = out.read_text(encoding="utf-8")
    page = read_page(text)
    check_contained(page, text)
    check_figures(page, document)
    assert page.tables[0][1][0].text == path.name
    assert page.tables[0][2][0].text == repr(odd.name)
    assert page.tables[1][1][0].text == repr(HOSTILE)
    assert not {"b", "i"} & page.tags
    assert "\x1b" not in text


def test_the_same_page_again(tiny: list[Path]) -> None:
    def page(n_threads: int) -> str:
        results = evaluate_models(tiny[2:], TINY, n_threads=n_threads)
        document = {"truth": str(TINY), "models": [each.to_json() for each in results]}
        collected = collect_distributions(results, TINY, n_threads=n_threads)
        return render_report(document, draw_pictures(results, collected), Provenance("", {}))

    assert page(1) == page(3)


def test_figures_that_json_does_not_have() -> None:
    """Without any error the ratio of signal to noise is infinite."""
    results = evaluate_models([TINY], TINY)
    models = [each.to_json() for each in results]
    document = {"truth": str(TINY), "models": models}
    assert models[0]["total"]["sqnr_db"] == np.inf
    page = read_page(render_report(document, [], Provenance.of("recover")))
    assert page.problems == []
    assert embedded(page)["models"][0]["total"]["sqnr_db"] is None
    (row,) = page.tables[0][1:]
    assert row[-1].text == "-"
    at = list(ERRORS).index("sqnr_db") + 1
    assert (row[at].text, row[at].attributes["data-value"]) == ("-", "null")


def test_nothing_is_written_over(
    tiny: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model.gguf"
    model.write_bytes(tiny[2].read_bytes())
    for out in (model, tmp_path / "no" / "report.html", tmp_path):
        assert main(["evaluate", str(model), "--truth", str(TINY), "--report", str(out)]) == 1
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err.startswith(f"recover: error: {out}: ")
        assert printed.err.count("\n") == 1
    with pytest.raises(OutputError, match="is one of the inputs"):
        write_report(model, {"truth": "t", "models": []}, [], Provenance.of(""), [model])
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]
    assert model.read_bytes() == tiny[2].read_bytes()


def test_the_result_in_a_sentence() -> None:
    models = [
        {"total": {"mse": mse, "rmse": mse**0.5}, "divergence": {"mean_kld": kl}}
        for mse, kl in ((4.0, 0.02), (3.0, 0.015), (5.0, 0.03))
    ]
    names = ["a.gguf", "b.gguf", "c.gguf"]
    assert result_of(names, models) == (
        "b.gguf has 75.0% of the mean square error of a.gguf,"
        " and 75.0% of its mean KL divergence from the original."
    )
    assert result_of(names[::-1], models[::-1]).startswith("b.gguf has 60.0% of the mean square")
    assert result_of(["b.gguf", "a.gguf"], [models[1], models[0]]) == (
        "Of 2 models b.gguf has the smallest errors of the weights."
    )
    assert result_of(["a.gguf"], [models[0] | {"divergence": None}]).endswith("errors).")
