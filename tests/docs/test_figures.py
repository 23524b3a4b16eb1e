"""Figures in tables and text of README and docs are those that the commands print."""

import os
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest

import recover
from tests.support.doc_blocks import blocks, run_shell
from tests.support.models import ROOT, SHARED

README = ROOT / "README.md"
DOCS = ROOT / "docs"
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[-+]?\d+)?")


def table(page: Path, *head: str) -> list[list[str]]:
    """The rows below the head that begins with these cells, as texts of cells."""
    lines = iter(page.read_text().splitlines())
    next(line for line in lines if line.startswith("|") and cells(line)[: len(head)] == [*head])
    next(lines)
    return [cells(line) for line in takewhile(lambda each: each.startswith("|"), lines)]


def cells(line: str) -> list[str]:
    """Of a row of a table."""
    return [cell.strip() for cell in line.strip("|").split("|")]


def numbers(texts: Iterable[str]) -> list[str]:
    """The numbers in some texts, as they are written."""
    return _NUMBER.findall(" ".join(texts).replace(",", ""))


def is_near(printed: str, told: str, relative: float) -> bool:
    """Whether two figures are equal to the digits of the one that is told."""
    mantissa, _, exponent = told.partition("e")
    unit = 10.0 ** (int(exponent or 0) - len(mantissa.partition(".")[2]))
    return abs(float(printed) - float(told)) <= 0.51 * unit + relative * abs(float(told))


def assert_in_order(told: Iterable[str], printed: Iterable[str], relative: float = 0.0) -> None:
    """All that is told is printed, in this order; more may be printed between."""
    left = iter(printed)
    for figure in told:
        assert any(is_near(each, figure, relative) for each in left), figure


def ratio(inputs: Sequence[Path], truth: Path, output: Path, **options: Any) -> float:
    """The measured mean square error of a merge over that of its first input."""
    recover.merge(inputs, output, **options)
    first, merged = recover.evaluate_models([inputs[0], output], truth)
    return merged.total.mse / first.total.mse


METHODS = ("linear", "midpoint", "posterior", "joint")


@pytest.mark.quality
@pytest.mark.parametrize("method", [*METHODS[:3], pytest.param("joint", marks=pytest.mark.slow)])
@pytest.mark.parametrize("row", [0, 1])
def test_what_the_readme_measured(
    row: int, method: str, quantized_29m: dict[str, Path], llama_29m: Path, tmp_path: Path
) -> None:
    names, *told = table(README, "inputs", *METHODS)[row]
    inputs = [quantized_29m[name] for name in names.partition(",")[0].split(" + ")]
    found = ratio(inputs, llama_29m, tmp_path / "merged.gguf", method=method)
    assert found == pytest.approx(float(told[METHODS.index(method)]), abs=1e-4)


def test_the_readme_says_the_same_everywhere() -> None:
    """In its picture, in its advice, and in the tables of errors that tests compare."""
    text = README.read_text()
    rows = table(README, "inputs", *METHODS)
    linear, _, posterior, joint = rows[0][1:]
    bars = re.findall(r"^    q5 \+ q4 \+ q2.*#  +(0\.\d+)$", text, re.MULTILINE)
    assert bars == [f"{float(each):.3f}" for each in (linear, posterior, joint)]
    printed = dict(re.findall(r"^([\w-]+)\.gguf .* (\d\.\d{4})$", text, re.MULTILINE))
    assert printed["f16"] == posterior
    ((f16, bf16, q8_0),) = re.findall(
        r"f16 \(default\) has (\S+) of the error, bf16 (\S+), q8_0 (\S+):", text
    )
    assert (f16, q8_0) == (posterior, printed["q8"])
    assert float(f16) < float(bf16) < float(q8_0)
    ((of_q8, of_q5, of_q6),) = re.findall(
        r"\((\S+) of the error of Q5_K_M\).*\n.* has (\S+) of the error of.* Q6_K has (\S+)\.", text
    )
    told = [f"{float(printed[name]):.3f}" for name in ("q8", "again-q5", "again-q6")]
    assert [of_q8, of_q5, of_q6] == told


@pytest.mark.quality
@pytest.mark.parametrize("outtype", ["bf16", "q8_0"])
def test_the_advice_on_types(
    outtype: str, quantized_29m: dict[str, Path], llama_29m: Path, tmp_path: Path
) -> None:
    (told,) = re.findall(rf"{outtype} (0\.\d+)[,:]", README.read_text())
    inputs = [quantized_29m[name] for name in ("Q5_K_M", "Q4_K_M", "Q2_K")]
    found = ratio(inputs, llama_29m, tmp_path / "merged.gguf", outtype=outtype)
    assert found == pytest.approx(float(told), abs=1e-4)


EXAMPLES = {
    "calibrate_and_apply": ("", "on llama-29m", "expected"),
    "many_uploads": ("`examples/many_uploads.py`: Q5_K files with different importance matrices",),
    "q8_and_others": ("`examples/q8_and_others.py`",),
    "miqu_situation": ("`examples/miqu_situation.py`",),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", EXAMPLES)
def test_examples(name: str) -> None:
    """On the models that they take by themselves."""
    command = [sys.executable, str(ROOT / "examples" / f"{name}.py")]
    here = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=here)
    rows = [row[1:] for row in table(DOCS / "calibration.md", *EXAMPLES[name])]
    if name == "calibrate_and_apply":  # a model after the other
        rows = [row[i : i + 2] for i in (0, 2) for row in rows]
    told = [figure for row in rows for figure in row]
    assert_in_order(told, numbers(done.stdout.split()), 1e-4)


@pytest.mark.slow
def test_calibrated_for_another_quantizer(place: Path, tmp_path: Path) -> None:
    for each in place.iterdir():
        (tmp_path / each.name).symlink_to(each)
    (block,) = (each for each in blocks("sh", needs="slow") if "q4_0-rmse" in each.text)
    done = run_shell(block.text, tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = table(DOCS / "calibration.md", "relative to Q4_K")
    expected = re.findall(r"expected mean square error: (0\.\d+)", done.stdout)
    assert_in_order([row[2] for row in rows], expected, 1e-3)
    measured = done.stdout.splitlines()[-2:]
    assert [line.split()[-1] for line in measured] == [row[1] for row in rows]


@pytest.mark.slow
@pytest.mark.inference
def test_divergence_of_arithmetic(place: Path) -> None:
    """With ``--native`` and without, of the page's command."""
    (block,) = (each for each in blocks("sh") if "--native" in each.text)
    (told,) = re.findall(
        r"divergence of (\S+) for Q5_K_M \((\S+) without.* and (\S+) for",
        (DOCS / "divergence.md").read_text(),
    )
    native, plain, original = told
    found = run_shell(block.text, place).stdout
    assert_in_order([native, original], numbers(found.partition("Divergence")[2].split()), 0.01)
    found = run_shell(block.text.replace("--native", ""), place).stdout
    assert_in_order([plain], numbers(found.partition("Divergence")[2].split()), 0.01)


@pytest.mark.slow
@pytest.mark.inference
def test_what_a_merge_gains(
    quantized_29m: dict[str, Path], llama_29m: Path, tmp_path: Path
) -> None:
    rows = {row[0]: row[1:] for row in table(DOCS / "divergence.md", "model", "mean KL")}
    inputs = [quantized_29m[name] for name in ("Q5_K_M", "Q4_K_M", "Q2_K")]
    models = [inputs[0]]
    for name in METHODS[:3]:
        models.append(tmp_path / f"{name}.gguf")
        recover.merge(inputs, models[-1], method=name, outtype="f32")
    found = recover.measure_divergence(models, llama_29m, SHARED / "eval.txt", n_chunks=24)
    for name, each in zip(("Q5_K_M, dequantized", *METHODS[:3]), found, strict=True):
        told = numbers(rows[name])
        printed = [each.mean_kld, 100 * each.same_top, each.ppl]
        for figure, own in zip((told[0], *told[-2:]), printed, strict=True):
            assert is_near(str(own), figure, 0.005), name


@pytest.mark.slow
@pytest.mark.inference
def test_originals() -> None:
    """Of one kind; the block of the page runs all of them."""
    texts = [str(SHARED / "llama-29m-bf16.gguf"), "MXFP4", "--text", str(SHARED / "eval.txt")]
    command = [sys.executable, "-m", "tests.benchmarks.originals", *texts, "--chunks", "6"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    rows = table(DOCS / "originals.md", "original", "way")[:6]
    for line, row in zip(done.stdout.splitlines()[1:], rows, strict=True):
        printed = numbers(line.split()[-6:])
        assert len(printed) == 6
        for own, told in zip(printed, numbers(row[2:]), strict=True):
            assert is_near(own, told, 0.02), (row, own, told)
