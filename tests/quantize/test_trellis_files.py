"""Whole files of trellis types: places, numbers, threads, what other commands make of them."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from recover.cli import main
from recover.containers.gguf.reader import GGUFModel, Tensor, open_gguf
from recover.errors import PlanError
from recover.quantize.choose import _LONGEST_ROW
from recover.quantize.plan import plan_quantize
from recover.quants import F32Array, quantize, type_by_name
from tests.support.quantizing import normal, refusal, run, stored, write_legacy, write_model

NUMBERS = {"IQ2_KT": 151, "IQ3_KT": 152, "IQ4_KT": 153}
UP, DOWN = "blk.0.ffn_up.weight", "blk.0.ffn_down.weight"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Matrices of 512 and 288 columns, which are no whole superblocks, and a stack of experts."""
    rng = np.random.default_rng(1)
    tensors = {
        "token_embd.weight": normal(rng, 3, 512),
        UP: normal(rng, 4, 512),
        DOWN: normal(rng, 5, 288),
        "blk.0.ffn_up_exps.weight": normal(rng, 2, 3, 256),
        "blk.0.attn_norm.weight": normal(rng, 512),
    }
    return write_model(tmp_path_factory.mktemp("trellis") / "f32.gguf", tensors)


def rows(model: GGUFModel[Tensor], name: str) -> F32Array:
    tensor = model.tensors[name]
    return tensor.read(0, tensor.n_weights).reshape(-1, tensor.dims[0])


def document(capsys: pytest.CaptureFixture[str], arguments: Sequence[object]) -> dict[str, object]:
    """What a command prints with ``--json``."""
    capsys.readouterr()
    assert main([*map(str, arguments), "--json"]) == 0
    found: dict[str, object] = json.loads(capsys.readouterr().out)
    return found


@pytest.mark.parametrize("name", NUMBERS)
def test_types_places_and_numbers(
    name: str, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.gguf"
    found = document(capsys, ["quantize", source, name.lower(), "-o", out])
    model, original = open_gguf(out), open_gguf(source)
    assert model.get("general.file_type") == NUMBERS[name]
    kinds = {each["name"]: each["to"] for each in found["tensors"]}  # type: ignore[attr-defined]
    assert kinds == {each.name: each.type.name for each in model.tensors.values()}
    assert kinds[DOWN] == "IQ4_NL"
    assert kinds["blk.0.attn_norm.weight"] == "F32"
    assert found["warnings"] == [
        f"rows are no whole {name} blocks, IQ4_NL is taken instead: {DOWN!r}"
    ]
    for tensor in ("token_embd.weight", UP, "blk.0.ffn_up_exps.weight"):
        assert kinds[tensor] == name
        raw = quantize(rows(original, tensor), type_by_name(name))
        assert bytes(model.tensors[tensor].raw) == raw.tobytes()
    assert found["n_bytes"] == out.stat().st_size


def test_importances_are_those_of_the_columns_of_each_matrix(source: Path, tmp_path: Path) -> None:
    rng, out = np.random.default_rng(2), tmp_path / "out.gguf"
    names = {UP: 512, "blk.0.ffn_up_exps.weight": 512, DOWN: 288}
    means = {name: rng.lognormal(size=n).astype(np.float32) for name, n in names.items()}
    imatrix = write_legacy(tmp_path / "imatrix.dat", means, n_calls=1)
    run(source, "IQ4_KT", "-o", out, "--imatrix", imatrix)
    model, original, kind = open_gguf(out), open_gguf(source), type_by_name("IQ4_KT")
    raw = quantize(rows(original, UP), kind, means[UP])
    assert bytes(model.tensors[UP].raw) == raw.tobytes()
    experts = rows(original, "blk.0.ffn_up_exps.weight")
    of_each = means["blk.0.ffn_up_exps.weight"].reshape(2, 256)
    parts = [quantize(experts[3 * k : 3 * k + 3], kind, of_each[k]).tobytes() for k in range(2)]
    assert bytes(model.tensors["blk.0.ffn_up_exps.weight"].raw) == b"".join(parts)


def test_threads_do_not_matter(tmp_path: Path) -> None:
    """Several tiles, the last of them smaller."""
    x = np.zeros((600, 256), np.float32)
    x[::100] = normal(np.random.default_rng(3), 6, 256)
    source = write_model(tmp_path / "in.gguf", {UP: x})
    plan = plan_quantize(source, tmp_path / "out.gguf", "IQ3_KT")
    assert x.size > 2 * plan.tensors[0].tile_size
    for n_threads in (1, 3):
        run(source, "IQ3_KT", "-o", tmp_path / f"{n_threads}.gguf", "--threads", n_threads)
    assert (tmp_path / "1.gguf").read_bytes() == (tmp_path / "3.gguf").read_bytes()


def test_among_other_types_and_copied(source: Path, tmp_path: Path) -> None:
    """A tensor keeps its bytes when the file is quantized again, headers of rows included."""
    one, two = tmp_path / "one.gguf", tmp_path / "two.gguf"
    run(source, "Q8_0", "-o", one, "--tensor-type", "ffn_up=IQ2_KT")
    before = stored(open_gguf(one))
    assert before[UP][0] == before["blk.0.ffn_up_exps.weight"][0] == "IQ2_KT"
    assert before["token_embd.weight"][0] == "Q8_0"
    run(one, "IQ2_KT", "-o", two, "--allow-requantize")
    after = stored(open_gguf(two))
    assert {name for name in before if before[name] != after[name]} == {"token_embd.weight", DOWN}


def test_other_commands_read_the_file(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    four, other, merged = (tmp_path / f"{name}.gguf" for name in ("four", "other", "merged"))
    run(source, "IQ4_KT", "-o", four)
    run(source, "Q4_K", "-o", other)
    assert main(["inspect", str(four)]) == 0
    assert "IQ4_KT" in capsys.readouterr().out
    assert main(["verify", str(source), str(four), "--quiet"]) == 0
    assert main(["merge", str(four), str(other), "-o", str(merged), "--quiet"]) == 0
    errors = []
    for path in (merged, four, other):
        off = rows(open_gguf(path), UP) - rows(open_gguf(source), UP)
        errors.append(np.square(off, dtype=np.float64).mean())
    assert errors[0] < 0.8 * min(errors[1:])
    measured = document(capsys, ["evaluate", "--truth", source, four, merged])
    models = measured["models"]
    assert isinstance(models, list)
    assert models[1]["total"]["mse"] < 0.9 * models[0]["total"]["mse"]


def test_weights_that_are_no_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x = normal(np.random.default_rng(4), 2, 256)
    x[1, 7] = np.nan
    source = write_model(tmp_path / "in.gguf", {UP: x})
    line = refusal(capsys, source, "IQ3_KT", "-o", tmp_path / "out.gguf")
    assert f"{source}: tensor '{UP}' holds NaN or infinite weights" in line
    assert [path.name for path in tmp_path.iterdir()] == ["in.gguf"]


def test_rows_that_are_too_long(tmp_path: Path) -> None:
    x = np.zeros((2, _LONGEST_ROW + 256), np.float16)
    source = write_model(tmp_path / "in.gguf", {UP: x})
    with pytest.raises(PlanError, match="IQ4_KT is encoded by whole rows, of at most 4,194,304"):
        plan_quantize(source, tmp_path / "out.gguf", "IQ4_KT")
