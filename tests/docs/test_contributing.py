"""The examples of docs/contributing.md are what they say: whole files, and enough."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from recover import PlanError
from recover.cli import main
from recover.containers.huggingface import formats
from tests.estimators.conformance import CHECKS
from tests.support import packages
from tests.support.foreign_modules import FLOATS, Array, heavy_tailed, rounded
from tests.support.format_checks import check_matrix, check_widened, matrix_of
from tests.support.gguf_files import stored, write_gguf
from tests.support.hf_folders import ONE_LAYER, write_arrays
from tests.support.hostile_modules import check_hostile
from tests.support.models import TINY

PAGE = Path(__file__).parents[2] / "docs" / "contributing.md"


def examples(function: str) -> list[str]:
    """Blocks of Python that define a function and have a docstring: whole modules."""
    blocks = [part.split("```")[0] for part in PAGE.read_text().split("```python\n")[1:]]
    return [each for each in blocks if each.startswith('"""') and f"def {function}(" in each]


@pytest.mark.parametrize("source", examples("estimate"), ids=["of_weights", "of_superblocks"])
def test_estimators(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "example_method.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    paths = [str(tmp_path / f"{name}.gguf") for name in ("Q4_K", "Q3_K", "Q8_0")]
    for path in paths:
        assert main(["quantize", str(TINY), Path(path).stem, "-o", path, "-q"]) == 0
    with packages.estimators(monkeypatch, example="example_method"):
        for check in CHECKS:
            check("example")
        output = str(tmp_path / "merged.gguf")
        capsys.readouterr()
        assert main(["merge", *paths, "-o", output, "--method", "example", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["method"] == "example"
    assert main(["evaluate", output, *paths, "--truth", str(TINY), "--json"]) == 0
    merged, *others = json.loads(capsys.readouterr().out)["models"]
    assert merged["total"]["mse"] < max(each["total"]["mse"] for each in others)


CONFIG = {"quant_method": "steps8"}
NAME, MODULE = "blk.0.ffn_down.weight", "model.layers.0.mlp.down_proj"


def encode_steps(x: Array) -> dict[str, Array]:
    steps = np.abs(x).max(0) / np.float32(120)
    codes = np.clip(np.rint(x / steps), -128, 127).astype(np.int8)
    return {"weight_codes": codes, "weight_steps": steps}


@pytest.fixture
def _steps8(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (source,) = examples("read")
    (tmp_path / "example_format.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    packages.install(monkeypatch, formats.GROUP, ("steps8", "example_format"))
    formats.formats_of_others.cache_clear()
    yield
    formats.formats_of_others.cache_clear()


@pytest.mark.usefixtures("_steps8")
def test_a_format_is_as_all_others_must_be(rng: np.random.Generator) -> None:
    w = heavy_tailed(rng, 91, 1000)
    check_matrix(matrix_of(encode_steps(w), CONFIG), w)
    for original in FLOATS:
        x = rounded(w, original)
        check_widened(matrix_of(encode_steps(x), CONFIG), x)
    assert check_hostile(encode_steps(heavy_tailed(rng, 8, 32)), CONFIG) > 10


@pytest.mark.usefixtures("_steps8")
def test_folders_of_a_format_go_through_every_command(
    rng: np.random.Generator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    w = rounded(heavy_tailed(rng, 256, 512), "BF16")
    folder = tmp_path / "folder"
    folder.mkdir()
    arrays = {f"{MODULE}.{leaf}": each for leaf, each in encode_steps(w).items()}
    write_arrays(folder / "model.safetensors", arrays)
    (folder / "config.json").write_text(json.dumps(ONE_LAYER | {"quantization_config": CONFIG}))
    beside = write_gguf(tmp_path / "q8_0.gguf", {NAME: stored("Q8_0", w)})
    truth = write_gguf(tmp_path / "truth.gguf", {NAME: stored("BF16", w)})
    inputs = [str(folder), str(beside)]

    def run(*arguments: str) -> dict[str, object]:
        capsys.readouterr()
        assert main([*arguments, "--json"]) == 0
        document: dict[str, object] = json.loads(capsys.readouterr().out)
        return document

    out = str(tmp_path / "out.gguf")
    assert run("merge", *inputs, "-o", out)["expected_mse_ratio"] < 0.9  # type: ignore[operator]
    assert run("inspect", *inputs)["together"]["same_original"]  # type: ignore[index]
    assert run("bounds", *inputs, "--summary")["total"]["two_sided"] > 0.9  # type: ignore[index]
    assert run("verify", str(truth), *inputs)["consistent"]
    models = run("evaluate", out, *inputs, "--truth", str(truth))["models"]
    merged, *others = (each["total"]["mse"] for each in models)  # type: ignore[attr-defined]
    assert merged < 0.9 * min(others)
    plain = tmp_path / "plain"
    run("export", str(folder), "-o", str(plain), "--outtype", "f32")
    assert (plain / "model.safetensors").exists()


def test_a_format_that_cannot_be_loaded_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    packages.install(monkeypatch, formats.GROUP, ("gone", "no_such_package"))
    formats.formats_of_others.cache_clear()
    with pytest.raises(PlanError, match=r"the format 'gone' .* cannot be loaded"):
        matrix_of({"weight_codes": np.zeros((8, 32), np.int8)}, CONFIG)
    formats.formats_of_others.cache_clear()


def test_a_format_is_looked_for_only_where_weights_are_quantized(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = packages.install(monkeypatch, formats.GROUP)
    formats.formats_of_others.cache_clear()
    with pytest.raises(AssertionError):
        matrix_of({"weight": np.zeros((8, 32), np.float32)})
    assert asked == []
