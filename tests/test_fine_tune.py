"""docs/fine-tune.md as its readers follow it: three GGUF files, a folder, LoRA."""

import json
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

from recover.cli import main
from tests.oracle.llama_cpp import LlamaModel
from tests.oracle.llama_vocabulary import LlamaVocabulary
from tests.support.interpreters import interpreter_with
from tests.support.models import ROOT, SHARED

pytestmark = [pytest.mark.slow, pytest.mark.inference]

TEXT = SHARED / "hamlet.txt"


@pytest.fixture(scope="module")
def inputs(quantized_29m: dict[str, Path]) -> list[str]:
    return [str(quantized_29m[name]) for name in ("Q5_K_M", "Q4_K_M", "Q2_K")]


@pytest.fixture(scope="module")
def folder(inputs: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fine-tune") / "model"
    assert main(["merge", *inputs, "-o", f"{path}/"]) == 0
    return path


def run(python: str, *arguments: object) -> str:
    command = [python, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def test_the_folder_computes_what_llama_cpp_computes(
    inputs: list[str], folder: Path, tmp_path: Path
) -> None:
    python = interpreter_with(["torch", "transformers"])
    rounded, file, text = (tmp_path / name for name in ("f16.gguf", "f32.gguf", "text.txt"))
    assert main(["merge", *inputs, "-o", str(rounded)]) == 0
    assert main(["merge", str(rounded), "-o", str(file), "--outtype", "f32"]) == 0
    text.write_text(TEXT.read_text()[:600])
    found = json.loads(run(python, ROOT / "tests" / "golden" / "folder_logits.py", folder, text))
    with LlamaVocabulary(file) as llama:
        assert found["ids"] == llama.encode(text.read_text(), around=True)
    with LlamaModel(file) as model:
        expected = model.logits(found["ids"])
    own = np.asarray(found["logits"])
    assert own.shape == expected.shape
    # llama.cpp keeps keys and values as float16, which single logits show.
    different = np.abs(own - expected)
    assert different.mean() < 1e-3
    assert different.max() < 1e-3 * np.abs(expected).max()


def test_steps_of_lora(folder: Path, tmp_path: Path) -> None:
    python = interpreter_with(["torch", "transformers", "peft"])
    text = tmp_path / "text.txt"
    text.write_text(TEXT.read_text()[:12_000])
    script, adapter = ROOT / "examples" / "lora.py", tmp_path / "adapter"
    said = run(python, script, folder, text, "-o", adapter, "--steps", 6)
    found = re.search(r"loss before ([\d.]+), after 6 steps ([\d.]+)", said)
    assert found is not None
    assert float(found[2]) < float(found[1])
    assert (adapter / "adapter_model.safetensors").is_file()
