"""Three quantizations of a trained model become a folder that is loaded, and trained further."""

from pathlib import Path

import numpy as np
import pytest

from recover.merge.execute import execute_merge
from recover.merge.plan import plan_merge
from recover.quantize.execute import execute_quantize
from recover.quantize.plan import plan_quantize
from tests.oracle.llama_cpp import LlamaModel
from tests.support.interpreters import interpreter_with, run_script
from tests.support.models import ROOT, SHARED, quantize

pytestmark = [pytest.mark.slow, pytest.mark.inference]

N_TOKENS = 256


def test_logits_and_a_step_of_training(llama_29m: Path, tmp_path: Path) -> None:
    python = interpreter_with(["torch", "transformers", "peft"])
    inputs = quantize(llama_29m, tmp_path, ("Q5_K_M", "Q4_K_M", "Q2_K"))
    execute_merge(plan_merge(inputs, f"{tmp_path}/folder/"))
    execute_merge(plan_merge(inputs, tmp_path / "f16.gguf"))
    whole = tmp_path / "f32.gguf"  # the same weights: no activation is rounded to F16
    execute_quantize(plan_quantize(tmp_path / "f16.gguf", whole, "F32"))
    with LlamaModel(whole, n_ctx=N_TOKENS, n_threads=2, in_f32=True) as model:
        tokens = model.tokenize((SHARED / "eval.txt").read_text()[:4000])[:N_TOKENS]
        np.savez(tmp_path / "logits.npz", tokens=tokens, logits=model.logits(tokens))
    script = ROOT / "tests" / "golden" / "check_folder.py"
    run_script(python, script, tmp_path / "folder", tmp_path / "logits.npz")
