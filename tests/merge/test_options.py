"""Options of merge: the mode, numbers of the source's format, standard deviations."""

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from recover import PlanError
from recover.cli import main
from recover.merge.execute import execute_merge
from recover.merge.plan import plan_merge
from recover.merge.resimulate import with_simulated_densities
from tests.support.gguf_files import F32Array, read_tensors, read_weights, stored, write_gguf
from tests.support.merging import Options
from tests.support.models import TINY

Weights = dict[str, F32Array]


@pytest.fixture(scope="module")
def fine(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Q8_0 and Q6_K of the small model, whose original is BF16."""
    folder = tmp_path_factory.mktemp("fine")
    paths = [folder / f"{name}.gguf" for name in ("Q8_0", "Q6_K")]
    for path in paths:
        assert main(["quantize", str(TINY), path.stem, "-o", str(path), "-q"]) == 0
    return paths


def truth_and(path: Path, inputs: list[Path]) -> tuple[F32Array, F32Array]:
    """The original and the merged weights of all tensors that were quantized."""
    names = [name for name, tensor in read_tensors(inputs[0]).items() if tensor.kind != "F32"]
    both = read_weights(TINY), read_weights(path)
    truth, merged = (np.concatenate([w[name].reshape(-1) for name in names]) for w in both)
    return truth, merged


def test_certain_weights_are_exact(fine: list[Path], tmp_path: Path) -> None:
    """Those whose deviation is 0, and no others are counted."""
    output, second = tmp_path / "out.gguf", tmp_path / "deviation.gguf"
    result = execute_merge(plan_merge(fine, output, outtype="f32", uncertainty=second))
    truth, merged = truth_and(output, fine)
    _, deviation = truth_and(second, fine)
    certain = deviation == 0
    assert result.n_exact == np.count_nonzero(certain) > 0.03 * truth.size
    np.testing.assert_array_equal(merged[certain], truth[certain])
    assert np.sum((merged - truth) ** 2) == pytest.approx(np.sum(deviation**2), rel=0.05)
    measured = np.mean((merged - truth) ** 2) / np.mean((truth_and(fine[0], fine)[1] - truth) ** 2)
    assert result.expected_mse_ratio == pytest.approx(measured, rel=0.03)


@pytest.mark.parametrize("outtype", ["bf16", "q8_0"])
def test_what_the_output_type_rounds_away_is_expected(
    fine: list[Path], tmp_path: Path, outtype: str
) -> None:
    output = tmp_path / "out.gguf"
    result = execute_merge(plan_merge(fine, output, outtype=outtype))
    truth, merged = truth_and(output, fine)
    measured = np.mean((merged - truth) ** 2) / np.mean((truth_and(fine[0], fine)[1] - truth) ** 2)
    assert measured > 0.92  # 0.85 as F16
    assert result.expected_mse_ratio == pytest.approx(measured, rel=0.03)


def test_numbers_that_are_rounded_again_are_not_snapped(fine: list[Path], tmp_path: Path) -> None:
    plain, snapped = (
        plan_merge(fine, tmp_path / f"{snap}.gguf", outtype="q8_0", snap=snap)
        for snap in ("none", "bf16")
    )
    assert [each for each in snapped.warnings if each not in plain.warnings] == [
        "--outtype q8_0 rounds all weights again, so --snap is of no use there"
    ]
    results = [execute_merge(plan) for plan in (plain, snapped)]
    assert results[0].expected_mse_ratio == results[1].expected_mse_ratio
    weights, others = (read_weights(plan.output) for plan in (plain, snapped))
    for name in weights:
        np.testing.assert_array_equal(weights[name], others[name])


def test_what_is_rounded_of_unquantized_tensors_is_expected(tmp_path: Path) -> None:
    weights = read_weights(TINY)
    paths = [tmp_path / f"{name}.gguf" for name in ("Q8_0", "Q6_K")]
    for path in paths:
        some = ["--tensor-type", "token_embd=F16", "--tensor-type", f"ffn={path.stem}"]
        assert main(["quantize", str(TINY), path.stem, "-o", str(path), *some, "-q"]) == 0
    output = tmp_path / "out.gguf"
    result = execute_merge(plan_merge(paths, output, outtype="q8_0"))
    best = read_weights(paths[0])
    merged = read_weights(output)
    names = [name for name, each in weights.items() if each.ndim > 1]
    errors = [sum(np.sum((w[n] - weights[n]) ** 2) for n in names) for w in (merged, best)]
    assert result.expected_mse_ratio == pytest.approx(errors[0] / errors[1], rel=0.03)
    (embedding,) = [each for each in result.tensors if each.plan.name == "token_embd.weight"]
    off = merged["token_embd.weight"] - weights["token_embd.weight"]
    assert embedding.expected_rmse == pytest.approx(np.mean(off**2) ** 0.5, rel=0.01)


def test_deviations_have_the_names_and_shapes_of_the_weights(
    tiny: list[Path], tmp_path: Path
) -> None:
    output, second = tmp_path / "out.gguf", tmp_path / "deviation.gguf"
    execute_merge(plan_merge(tiny, output, uncertainty=second))
    weights, deviations = read_weights(output), read_weights(second)
    assert list(weights) == list(deviations)
    for name, deviation in deviations.items():
        assert deviation.shape == weights[name].shape
        assert np.all(deviation >= 0)
        assert (deviation.max() > 0) == (weights[name].ndim > 1)


def test_snapping_brings_back_more_weights_bit_for_bit(fine: list[Path], tmp_path: Path) -> None:
    output = tmp_path / "out.gguf"
    plan = plan_merge(fine, output, snap="auto")
    assert plan.source_format == "bf16"
    result = execute_merge(plan)
    truth, merged = truth_and(output, fine)
    alone = truth_and(fine[0], fine)[1]
    rounded = alone.astype(ml_dtypes.bfloat16).astype(np.float32)
    assert np.mean(merged == truth) > np.mean(rounded == truth) + 0.03
    np.testing.assert_array_equal(merged, merged.astype(ml_dtypes.bfloat16).astype(np.float32))
    measured = np.mean((merged - truth) ** 2) / np.mean((alone - truth) ** 2)
    assert result.expected_mse_ratio == pytest.approx(measured, rel=0.05)


@pytest.fixture
def changed(tmp_path: Path, rng: np.random.Generator) -> tuple[list[Path], Weights]:
    """Q8_0 and Q6_K of bf16 matrices, one of which was changed and saved as F16; bf16 norms."""
    truth = {
        name: weights
        for name, weights in read_weights(TINY).items()
        if name.startswith("blk.0.") and (weights.ndim == 1 or weights.shape[-1] % 256 == 0)
    }
    name = "blk.0.ffn_down.weight"
    noise = 1 + 0.05 * rng.standard_normal(truth[name].shape)
    truth[name] = (truth[name] * noise).astype(np.float16).astype(np.float32)
    paths = []
    for kind in ("Q8_0", "Q6_K"):
        tensors = {n: stored(kind if w.ndim > 1 else "F32", w) for n, w in truth.items()}
        paths.append(write_gguf(tmp_path / f"{kind}.gguf", tensors))
    return paths, truth


@pytest.mark.parametrize("snap", ["none", "auto", "bf16"])
@pytest.mark.parametrize("n_inputs", [1, 2])
def test_norms_alone_prove_nothing(
    changed: tuple[list[Path], Weights], tmp_path: Path, snap: str, n_inputs: int
) -> None:
    paths, truth = changed
    output, second = tmp_path / "out.gguf", tmp_path / "deviation.gguf"
    plan = plan_merge(paths[:n_inputs], output, outtype="f32", snap=snap, uncertainty=second)
    (warning,) = plan.warnings
    assert "'blk.0.ffn_down.weight': the bytes show that" in warning
    assert plan.undecided == {"blk.0.ffn_down.weight"}
    result = execute_merge(plan)
    assert result.n_exact > 10_000
    merged, deviations = read_weights(output), read_weights(second)
    for name, weights in truth.items():
        certain = deviations[name] == 0
        np.testing.assert_array_equal(merged[name][certain], weights[certain])
        if name in plan.undecided:
            assert certain.mean() < 1e-4
            rounded = merged[name].astype(ml_dtypes.bfloat16).astype(np.float32)
            assert np.mean(rounded == merged[name]) < 0.1


def test_nothing_is_rounded_where_every_tensor_contradicts_the_norms(
    changed: tuple[list[Path], Weights], tmp_path: Path
) -> None:
    paths, _ = changed
    for tensors in ("ffn_down", "ffn_down|norm"):
        plan = plan_merge(paths, tmp_path / "out.gguf", tensors=tensors, snap="auto")
        assert plan.source_format == "unknown"
        assert execute_merge(plan, force=True).n_exact == 0


def test_map_differs_from_the_mean_and_is_about_as_good(tiny: list[Path], tmp_path: Path) -> None:
    paths = {estimate: tmp_path / f"{estimate}.gguf" for estimate in ("mean", "map")}
    for estimate, path in paths.items():
        execute_merge(plan_merge(tiny, path, estimate=estimate))
    truth, mean = truth_and(paths["mean"], tiny)
    _, mode = truth_and(paths["map"], tiny)
    errors = [np.mean((each - truth) ** 2) for each in (mean, mode)]
    assert errors[0] < errors[1] < 1.2 * errors[0]


def test_densities_from_the_models_own_weights(tiny: list[Path], tmp_path: Path) -> None:
    shipped, simulated = tmp_path / "shipped.gguf", tmp_path / "simulated.gguf"
    execute_merge(plan_merge(tiny, shipped))
    own = with_simulated_densities(plan_merge(tiny, simulated), 1_000_000)
    assert own.densities is not None
    assert ("Q5_K", False, True) in own.densities
    result = execute_merge(own)
    truth, merged = truth_and(simulated, tiny)
    _, other = truth_and(shipped, tiny)
    errors = [np.mean((each - truth) ** 2) for each in (merged, other)]
    assert np.any(merged != other)
    assert errors[0] < 1.005 * errors[1]
    alone = np.mean((truth_and(tiny[0], tiny)[1] - truth) ** 2)
    assert result.expected_mse_ratio == pytest.approx(errors[0] / alone, rel=0.03)


def test_too_few_weights_for_densities(tiny: list[Path], tmp_path: Path) -> None:
    plan = plan_merge(tiny, tmp_path / "out.gguf")
    with pytest.raises(PlanError, match="cannot be simulated from 1,000 weights: at least 262,144"):
        with_simulated_densities(plan, 1000)
    linear = plan_merge(tiny, tmp_path / "out.gguf", method="linear")
    with pytest.raises(PlanError, match="for the method posterior"):
        with_simulated_densities(linear, 1_000_000)


def test_order_of_the_inputs_does_not_matter(
    fine: list[Path], tiny: list[Path], tmp_path: Path
) -> None:
    inputs = [*tiny, *fine]
    merged = []
    for i, order in enumerate((inputs, inputs[::-1], inputs[2:] + inputs[:2])):
        output = tmp_path / f"{i}.gguf"
        execute_merge(plan_merge(order, output, outtype="f32"))
        merged.append(read_weights(output))
    for name, weights in merged[0].items():
        for other in merged[1:]:
            np.testing.assert_array_equal(weights, other[name])


def test_options_on_the_command_line(
    fine: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, second = tmp_path / "out.gguf", tmp_path / "deviation.gguf"
    arguments = ["merge", *map(str, fine), "-o", str(output), "--uncertainty", str(second)]
    assert main([*arguments, "--snap", "auto", "--estimate", "map", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["output"] == str(output)
    assert second.exists()
    assert main(arguments) == 0
    assert "are the only bf16 number within their bounds" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"estimate": "median"}, "estimate 'median' is unknown; known are mean, map"),
        ({"estimate": "map", "method": "linear"}, "method linear has no map estimate"),
        ({"snap": "f64"}, "snap 'f64' is unknown; known are auto, none"),
    ],
)
def test_wrong_options(options: Options, message: str, tiny: list[Path], tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=message):
        plan_merge(tiny, tmp_path / "out.gguf", **options)


def test_deviations_need_a_file_of_their_own(tiny: list[Path], tmp_path: Path) -> None:
    output = tmp_path / "out.gguf"
    with pytest.raises(PlanError, match="is the output as well"):
        plan_merge(tiny, output, uncertainty=output)
    with pytest.raises(Exception, match="is one of the inputs"):
        plan_merge(tiny, output, uncertainty=tiny[0])
