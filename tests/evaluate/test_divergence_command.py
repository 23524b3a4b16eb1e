"""`recover evaluate --text`: what it prints, its errors, and what a signal leaves."""

import json
import os
import signal
import subprocess
import sys
import tomllib
from functools import partial
from pathlib import Path

import pytest

import recover
from recover.cli import main
from recover.evaluate import llama_binding
from tests.support.models import ROOT, TINY

pytestmark = pytest.mark.inference

# One thread: the model is small, and llama.cpp's threads wait for each other without sleeping.
measure_divergence = partial(recover.measure_divergence, n_threads=1)

KEYS = [
    "n_tokens",
    "mean_kld",
    "mean_kld_ci99",
    "kld_median",
    "kld_p90",
    "kld_p95",
    "kld_p99",
    "kld_max",
    "same_top",
    "top1_in_top5",
    "top1_in_top10",
    "kld_p999",
    "rms_delta_p",
    "ppl",
    "ppl_truth",
    "ln_ppl_ratio",
    "ln_ppl_ratio_se",
]


def evaluate(tiny: list[Path], text: Path, *options: str) -> int:
    paths = map(str, tiny[:2])
    sizes = ("--n-ctx", "64", "--chunks", "2", "--threads", "1")
    return main(["evaluate", *paths, "--truth", str(TINY), "--text", str(text), *sizes, *options])


def test_json(tiny: list[Path], text: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert evaluate(tiny, text, "--json") == 0
    printed = capfd.readouterr()
    assert printed.err == ""
    models = json.loads(printed.out)["models"]
    expected = measure_divergence(tiny[:2], TINY, text, n_ctx=64, n_chunks=2)
    for model, divergence in zip(models, expected, strict=True):
        assert list(model) == ["path", "total", "tensors", "divergence"]
        assert model["divergence"] == divergence.to_json()
    assert list(models[0]["divergence"]) == KEYS
    assert list(models[1]["divergence"]) == [*KEYS, "paired"]
    assert models[0]["divergence"]["n_tokens"] == 62
    low, high = models[0]["divergence"]["mean_kld_ci99"]
    assert low < models[0]["divergence"]["mean_kld"] < high


def test_tables(tiny: list[Path], text: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert evaluate(tiny, text, "--verbose", "--native") == 0
    printed = capfd.readouterr()
    first, second = measure_divergence(tiny[:2], TINY, text, n_ctx=64, n_chunks=2, native=True)
    assert "on 62 tokens" in printed.out
    assert f"{first.mean_kld:.4g}" in printed.out
    assert f"(original: {first.ppl_truth:.4f})" in printed.out
    assert second.paired is not None
    assert f"{second.paired.mean_kld_difference:+.4g}" in printed.out
    assert "recover: llama.cpp: llama_model_loader: " in printed.err


def test_without_the_extra(
    tiny: list[Path], text: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extra = project["optional-dependencies"]["eval"]
    (requirement,) = [each for each in extra if each.startswith("xllamacpp")]
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    monkeypatch.setattr(llama_binding, "library", llama_binding.library.__wrapped__)
    assert evaluate(tiny, text) == 1
    printed = capfd.readouterr()
    assert printed.out == ""
    assert printed.err == (
        "recover: error: evaluating on a text needs llama.cpp;"
        f" install it with `pip install '{requirement}'`, or this package with its extra `eval`\n"
    )
    assert main(["evaluate", str(tiny[0]), "--truth", str(TINY)]) == 0


SLOW = """
import os, signal, sys, time
from recover.cli import main
from recover.evaluate.llama_cpp import LlamaModel
logits, n_calls = LlamaModel.logits, 0
def slow(self, tokens, first):
    global n_calls
    n_calls += 1
    if n_calls > 2:
        sys.stderr.write("chunk\\n")
        time.sleep(60)
    return logits(self, tokens, first)
LlamaModel.logits = slow
# whoever runs the tests in the background may have had it ignored
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_leave_nothing(
    number: signal.Signals, tiny: list[Path], text: Path, tmp_path: Path
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    arguments = ["evaluate", str(tiny[2]), "--truth", str(TINY), "--text", str(text)]
    sizes = ["--n-ctx", "64", "--chunks", "2", "--threads", "1"]
    command = [sys.executable, "-c", SLOW, *arguments, *sizes]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=os.environ | {"TMPDIR": str(scratch)}
    ) as process:
        assert process.stderr is not None
        assert "chunk\n" in iter(process.stderr.readline, "")  # perhaps behind that it compiles
        (folder,) = scratch.iterdir()
        assert [path.name for path in folder.iterdir()] == ["model.gguf"]
        process.send_signal(number)
        messages = process.stderr.read()
    assert process.returncode == 128 + number
    assert messages.splitlines()[-1].startswith("recover: stopped")
    assert "Traceback" not in messages
    assert not list(scratch.iterdir())
