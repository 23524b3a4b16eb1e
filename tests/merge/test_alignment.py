"""Files of one model that do not hold the same tensors are merged as far as they do."""

import json
from pathlib import Path

import numpy as np
import pytest

from recover.bounds.plan import plan_bounds
from recover.cli import main
from recover.errors import PlanError
from recover.merge.execute import execute_merge
from recover.merge.plan import plan_merge
from tests.support.encoders import fp8
from tests.support.gguf_files import (
    F32Array,
    Stored,
    read_tensors,
    read_weights,
    stored,
    write_gguf,
)
from tests.support.hf_folders import write_arrays
from tests.support.merging import MATRICES, NORM, UP, Make, Q, merge

EXPERTS = "blk.0.ffn_gate"


def mean_square(off: F32Array) -> float:
    return float(np.mean(np.square(off.astype(np.float64))))


@pytest.mark.parametrize("order", [1, -1])
def test_what_some_lack_is_taken_from_the_others(
    make: Make, tmp_path: Path, truth: dict[str, F32Array], order: int
) -> None:
    extra = {"rope_freqs.weight": stored("F32", np.arange(1, 33, dtype=np.float32))}
    lacking, full = make("Q5_K", {UP: None}), make("Q4_K", extra)
    plan = plan_merge([lacking, full][::order], tmp_path / "out.gguf")
    (warning,) = [text for text in plan.warnings if "lacks" in text]
    assert str(lacking) in warning
    assert UP in warning
    assert "rope_freqs.weight" in warning
    execute_merge(plan, n_threads=1)
    written, alone = read_weights(plan.output), read_weights(full)
    assert set(written) == {*truth, "rope_freqs.weight"}
    np.testing.assert_array_equal(written["rope_freqs.weight"], np.arange(1, 33))
    np.testing.assert_allclose(written[UP], alone[UP], atol=3e-3)
    best = mean_square(read_weights(lacking)[Q] - truth[Q])
    assert mean_square(written[Q] - truth[Q]) < best
    twice = plan_merge([lacking, full, lacking], tmp_path / "twice.gguf")
    assert len([text for text in twice.warnings if "lacks" in text]) == 1


def test_types_say_what_is_absent(make: Make, tmp_path: Path) -> None:
    plan = plan_merge([make("Q5_K", {UP: None}), make("Q4_K")], tmp_path / "out.gguf")
    by_name = {tensor.name: tensor for tensor in plan.tensors}
    assert by_name[UP].types == ("absent", "Q4_K")
    assert by_name[UP].used == (1,)
    assert by_name[Q].types == ("Q5_K", "Q4_K")


def test_wrong_tensors_are_still_refused(
    make: Make, tmp_path: Path, truth: dict[str, F32Array]
) -> None:
    other = make("Q4_K", {Q: stored("Q4_K", truth[Q][::-1].copy()), UP: None})
    with pytest.raises(PlanError, match="contradict"):
        merge([make("Q5_K"), other], tmp_path / "out.gguf")


@pytest.mark.parametrize("n_rows", [40, 64])
@pytest.mark.parametrize("order", [1, -1])
def test_added_rows(
    make: Make, tmp_path: Path, truth: dict[str, F32Array], n_rows: int, order: int
) -> None:
    rng = np.random.default_rng(1)
    more = (0.02 * rng.standard_t(8, (24, 512))).astype(np.float32)
    rows = np.concatenate([truth[UP], more])[:n_rows]
    inputs = [make("Q5_K"), make("Q4_K", {UP: stored("Q4_K", rows)})][::order]
    sigma = tmp_path / "sigma.gguf"
    plan = plan_merge(inputs, tmp_path / "out.gguf", uncertainty=sigma)
    execute_merge(plan, n_threads=1)
    written = read_tensors(plan.output)
    n_wanted = len(read_tensors(inputs[0])[UP].rows)
    assert len(written[UP].rows) == n_wanted
    assert set(written) == set(truth)
    whole = np.concatenate([truth[UP], more])[:n_wanted]
    off = read_weights(plan.output)[UP] - whole
    n_common = min(n_rows, 48)
    alone = [mean_square(read_weights(each)[UP][:n_common] - whole[:n_common]) for each in inputs]
    assert mean_square(off[:n_common]) < min(alone)
    if n_wanted > n_common:
        assert mean_square(off[n_common:]) < 2 * max(alone)
    assert len(read_tensors(sigma)[UP].rows) == n_wanted
    assert any(UP in text and "rows" in text for text in plan.warnings)


def test_another_shape_of_the_same_weights(
    make: Make, tmp_path: Path, truth: dict[str, F32Array]
) -> None:
    other = make("Q4_K", {UP: stored("Q4_K", truth[UP].reshape(96, 256))})
    plan = plan_merge([make("Q5_K"), other], tmp_path / "out.gguf")
    result = execute_merge(plan, n_threads=1)
    assert read_weights(tmp_path / "out.gguf")[UP].shape == (48, 512)
    assert result.expected_mse_ratio is not None
    assert result.expected_mse_ratio < 0.9
    assert any("256x96, and taken as 512x48" in text for text in plan.warnings)


def test_a_transposed_matrix_is_refused(
    make: Make, tmp_path: Path, truth: dict[str, F32Array]
) -> None:
    turned = np.ascontiguousarray(truth[UP].T.reshape(48, 512))
    other = make("Q4_K", {UP: stored("Q4_K", turned)})
    with pytest.raises(PlanError, match="contradict"):
        merge([make("Q5_K"), other], tmp_path / "out.gguf")


ODD = [((3, 40), (3, 40)), ((1, 8), (1, 8)), ((5, 7), (5, 7)), ((47, 40), (48, 40))]


@pytest.mark.parametrize(("shape", "in_folder"), ODD)
@pytest.mark.parametrize("order", [1, -1])
def test_quantized_without_whole_blocks(
    tmp_path: Path, shape: tuple[int, int], in_folder: tuple[int, int], order: int
) -> None:
    rng = np.random.default_rng(2)
    x = (0.02 * rng.standard_t(8, in_folder)).astype(np.float16).astype(np.float32)
    y = (0.02 * rng.standard_t(8, (64, 64))).astype(np.float32)
    modules = {"model.layers.0.mlp.up_proj": x, "model.layers.0.mlp.gate_proj": y}
    arrays = {
        f"{name}.{leaf}": array
        for name, w in modules.items()
        for leaf, array in fp8.encode(w, "row").items()
    }
    folder = tmp_path / "folder"
    folder.mkdir()
    write_arrays(folder / "model.safetensors", arrays)
    config = {"model_type": "llama", "num_hidden_layers": 1}
    (folder / "config.json").write_text(json.dumps(config))
    own = {UP: stored("F16", x[: shape[0]]), f"{EXPERTS}.weight": stored("Q4_0", y)}
    inputs = [folder, write_gguf(tmp_path / "q4.gguf", own)][::order]
    plan = plan_merge(inputs, tmp_path / "out.gguf")
    execute_merge(plan, n_threads=1)
    assert np.array_equal(read_weights(plan.output)[UP], x[: shape[0]])
    (warning,) = [text for text in plan.warnings if "whole blocks of 16" in text]
    assert str(folder) in warning
    assert UP in warning
    assert EXPERTS not in warning
    plan_bounds(inputs)
    if shape == in_folder:
        with pytest.raises(PlanError, match=f"{UP}.*--tensors"):
            plan_bounds([folder])


def test_an_architecture_may_be_missing(make: Make, tmp_path: Path) -> None:
    other = make("Q4_K", architecture=None)
    assert plan_merge([make("Q5_K"), other], tmp_path / "out.gguf").tensors


@pytest.mark.parametrize("order", [1, -1])
def test_experts_apart_and_stacked(
    make: Make, tmp_path: Path, rng: np.random.Generator, order: int
) -> None:
    x = (0.02 * rng.standard_t(8, (4, 16, 512))).astype(np.float32)
    apart: dict[str, Stored | None] = {
        f"{EXPERTS}.{i}.weight": stored("Q5_K", each) for i, each in enumerate(x)
    }
    together: dict[str, Stored | None] = {f"{EXPERTS}_exps.weight": stored("Q4_K", x)}
    inputs = [make("Q5_K", apart), make("Q4_K", together)][::order]
    merge(inputs, tmp_path / "out.gguf")
    written = read_weights(tmp_path / "out.gguf")
    assert f"{EXPERTS}.0.weight" not in written
    found = written[f"{EXPERTS}_exps.weight"].reshape(x.shape)
    best = mean_square(read_weights(inputs[::order][0])[f"{EXPERTS}.0.weight"] - x[0])
    assert mean_square(found[0] - x[0]) < best


def test_only_chosen_tensors_are_looked_at(
    make: Make, tmp_path: Path, truth: dict[str, F32Array]
) -> None:
    other = make("Q4_K", {UP: stored("Q4_K", truth[UP][:10])})
    plan = plan_merge([make("Q5_K"), other], tmp_path / "out.gguf", tensors="attn_q")
    assert [tensor.name for tensor in plan.tensors] == [Q]


def test_bounds_of_what_one_lacks(make: Make) -> None:
    plan = plan_bounds([make("Q5_K", {UP: None}), make("Q4_K")])
    by_name = {tensor.name: tensor for tensor in plan.tensors}
    assert [len(by_name[name].sources) for name in (Q, UP)] == [2, 1]
    assert set(by_name) == {*MATRICES, NORM}


@pytest.mark.parametrize("command", ["inspect", "bounds", "merge"])
def test_commands(
    command: str, make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs = [str(make("Q5_K", {UP: None})), str(make("Q4_K"))]
    output = [] if command == "inspect" else ["-o", str(tmp_path / "out.gguf")]
    if command == "bounds":
        output = ["--summary"]
    assert main([command, *inputs, *output]) == 0
    printed = capsys.readouterr()
    assert UP in (printed.err if command == "merge" else printed.out)
