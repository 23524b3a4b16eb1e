"""Inputs of every kind together: the same, different, split, of mixed types."""

import itertools
import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from recover.cli import main
from recover.containers.gguf.reader import open_gguf
from recover.errors import OutputError, PlanError
from recover.estimators import method_names
from recover.merge.execute import execute_merge
from recover.merge.plan import plan_merge
from tests.hostile.builder import kv, string
from tests.hostile.kinds import STRING
from tests.support.fork_files import file_of
from tests.support.gguf_files import (
    F32Array,
    read_tensors,
    read_weights,
    squared_error,
    stored,
    tensor_bytes,
)
from tests.support.merging import COMBINING, MATRICES, NORM, UP, Make, Q, merge, merged


class TestDuplicates:
    def test_an_input_given_twice_counts_once(self, make: Make, tmp_path: Path) -> None:
        fine, coarse = make("Q5_K"), make("Q4_K")
        copy = make("Q5_K", name="copy")
        plan = plan_merge([fine, coarse, copy, fine], tmp_path / "out.gguf")
        assert [tensor.duplicate_of for tensor in plan.tensors] == [
            (0, 1, 0, 0),
            (0, 0, 0, 0),
            (0, 1, 0, 0),
        ]
        assert all(len(tensor.used) <= 2 for tensor in plan.tensors)
        assert plan.warnings == (
            f"{copy} has the same weights as {fine}, byte for byte: it counts once",
            f"{fine} is given more than once: it counts once",
        )
        four = execute_merge(plan, n_threads=1)
        two = merge([fine, coarse], tmp_path / "two.gguf")
        assert tensor_bytes(plan.output) == tensor_bytes(tmp_path / "two.gguf")
        assert four.expected_mse_ratio == two.expected_mse_ratio

    @pytest.mark.parametrize("method", method_names())
    def test_the_same_file_twice_is_that_file(
        self, make: Make, tmp_path: Path, method: str
    ) -> None:
        path = make("Q4_K")
        result = merge([path, path], tmp_path / "twice.gguf", method=method)
        merge([path], tmp_path / "once.gguf", method=method)
        assert tensor_bytes(tmp_path / "twice.gguf") == tensor_bytes(tmp_path / "once.gguf")
        decoded = read_weights(path)
        for name, weights in read_weights(tmp_path / "once.gguf").items():
            np.testing.assert_array_equal(
                weights, decoded[name].astype(np.float16) if name != NORM else decoded[name]
            )
        assert result.expected_mse_ratio == 1
        assert [each.plan.action for each in result.tensors] == ["convert", "copy", "convert"]

    def test_one_tensor_of_another_type_is_no_duplicate(
        self, make: Make, tmp_path: Path, truth: dict[str, F32Array]
    ) -> None:
        mixed = make("Q5_K", {UP: stored("Q6_K", truth[UP])}, name="mixed")
        plan = plan_merge([make("Q5_K"), mixed], tmp_path / "out.gguf")
        by_name = {tensor.name: tensor for tensor in plan.tensors}
        assert (by_name[Q].action, by_name[Q].used) == ("convert", (0,))
        assert (by_name[UP].action, by_name[UP].used) == ("merge", (1, 0))


class TestMismatches:
    def refused(self, first: Path, other: Path) -> str:
        output = other.with_name("out.gguf")
        with pytest.raises(PlanError) as caught:
            plan_merge([first, other], output)
        assert not output.exists()
        message = str(caught.value)
        assert str(first) in message
        assert str(other) in message
        return message

    def test_shape(self, make: Make, truth: dict[str, F32Array]) -> None:
        other = make("Q4_K", {UP: stored("Q4_K", truth[UP][:10])})
        assert f"{UP!r} is 512x10 instead of 512x48" in self.refused(make("Q5_K"), other)

    def test_nothing_in_common(self, make: Make, truth: dict[str, F32Array]) -> None:
        renamed = dict.fromkeys(truth) | {"odd": stored("Q4_K", truth[UP])}
        message = self.refused(make("Q5_K"), make("Q4_K", renamed))
        assert "they have no tensor in common" in message

    def test_architecture(self, make: Make) -> None:
        message = self.refused(make("Q5_K"), make("Q4_K", architecture="qwen2"))
        assert "architecture is 'qwen2', not 'llama'" in message

    def test_trailing_dimensions_of_one_do_not_matter(
        self, make: Make, tmp_path: Path, truth: dict[str, F32Array]
    ) -> None:
        other = make("Q4_K", {UP: stored("Q4_K", truth[UP][None])})
        assert plan_merge([make("Q5_K"), other], tmp_path / "out.gguf").tensors


class TestNorms:
    def test_disagreement_is_reported_and_the_first_taken(
        self, make: Make, tmp_path: Path, truth: dict[str, F32Array]
    ) -> None:
        first = make("Q4_K")
        other = make("Q5_K", {NORM: stored("F32", truth[NORM] + 0.5)})
        plan = plan_merge([first, other], tmp_path / "out.gguf")
        (warning,) = plan.warnings
        assert NORM in warning
        assert str(first) in warning
        execute_merge(plan, n_threads=1)
        np.testing.assert_array_equal(read_weights(plan.output)[NORM], truth[NORM])

    @pytest.mark.parametrize("order", [1, -1])
    def test_the_most_precise_is_taken(
        self, make: Make, tmp_path: Path, truth: dict[str, F32Array], order: int
    ) -> None:
        rounded = make("Q5_K", {NORM: stored("F16", truth[NORM] + 0.5)})
        plan = plan_merge([rounded, make("Q4_K")][::order], tmp_path / "out.gguf")
        assert len(plan.warnings) == 1
        execute_merge(plan, n_threads=1)
        written = read_tensors(plan.output)[NORM]
        assert written.kind == "F32"
        np.testing.assert_array_equal(written.rows, truth[NORM])

    @pytest.mark.parametrize("order", [1, -1])
    @pytest.mark.parametrize(
        ("kind", "dtype"),
        [("F32", ml_dtypes.bfloat16), ("F32", np.float16), ("F16", ml_dtypes.bfloat16)],
    )
    def test_of_one_type_the_numbers_with_more_digits_are_taken(
        self,
        make: Make,
        tmp_path: Path,
        truth: dict[str, F32Array],
        kind: str,
        dtype: type,
        order: int,
    ) -> None:
        exact = truth[NORM].copy()
        exact[0] = 1 + 3 / 1024 + 2**-20  # is rounded down: its bytes sort behind the rounded ones
        rounded = exact.astype(dtype).astype(np.float32)
        inputs = [
            make("Q5_K", {NORM: stored(kind, exact)}),
            make("Q4_K", {NORM: stored(kind, rounded)}),
        ]
        plan = plan_merge(inputs[::order], tmp_path / "out.gguf")
        assert len(plan.warnings) == 1
        assert str(inputs[0]) in plan.warnings[0]
        execute_merge(plan, n_threads=1)
        expected = stored(kind, exact).rows
        np.testing.assert_array_equal(read_tensors(plan.output)[NORM].rows, expected)

    def test_mere_rounding_is_no_disagreement(
        self, make: Make, tmp_path: Path, truth: dict[str, F32Array]
    ) -> None:
        rounded = make("Q5_K", {NORM: stored("F16", truth[NORM])})
        assert not plan_merge([rounded, make("Q4_K")], tmp_path / "out.gguf").warnings


@pytest.mark.parametrize("method", method_names())
def test_the_order_of_the_inputs_does_not_matter(make: Make, tmp_path: Path, method: str) -> None:
    paths = [make(kind) for kind in ("Q6_K", "Q4_0", "IQ4_XS", "Q2_K")]
    output = tmp_path / "out.gguf"
    first = merged(paths, output, method=method, outtype="f32")
    for order in itertools.islice(itertools.permutations(paths), 1, None, 3):
        other = merged(list(order), output, method=method, outtype="f32")
        for name, weights in first.items():
            np.testing.assert_allclose(other[name], weights, rtol=1e-6, atol=1e-9)


class TestFloatInputs:
    @pytest.mark.parametrize("order", [1, -1])
    @pytest.mark.parametrize("outtype", ["f16", "bf16", "f32"])
    def test_a_half_precision_input_is_taken_as_it_is(
        self, make: Make, tmp_path: Path, truth: dict[str, F32Array], outtype: str, order: int
    ) -> None:
        inputs = [make("Q5_K"), make("F16"), make("Q4_K")]
        result = merge(inputs[::order], tmp_path / "out.gguf", outtype=outtype)
        actions = {each.plan.name: each.plan.action for each in result.tensors}
        action = "copy" if outtype == "f16" else "convert"
        assert actions == {Q: action, NORM: "copy", UP: action}
        half = {name: truth[name].astype(np.float16) for name in MATRICES}
        kind = {"f16": np.float16, "bf16": ml_dtypes.bfloat16, "f32": np.float32}[outtype]
        written = read_tensors(tmp_path / "out.gguf")
        for name in MATRICES:
            assert written[name].kind == outtype.upper()
            assert written[name].rows.tobytes() == half[name].astype(kind).tobytes()

    def test_a_single_tensor_in_half_precision(
        self, make: Make, tmp_path: Path, truth: dict[str, F32Array]
    ) -> None:
        mixed = make("Q5_K", {UP: stored("F16", truth[UP])})
        result = merge([make("Q4_K"), mixed], tmp_path / "out.gguf")
        assert [each.plan.action for each in result.tensors] == ["merge", "copy", "copy"]
        assert not any("disagree" in each for each in result.plan.warnings)
        weights = read_weights(tmp_path / "out.gguf")[UP]
        np.testing.assert_array_equal(weights, truth[UP].astype(np.float16))

    def test_single_precision_next_to_quantized_is_copied(
        self, make: Make, tmp_path: Path, truth: dict[str, F32Array]
    ) -> None:
        result = merge([make("Q4_K"), make("F32")], tmp_path / "out.gguf")
        (warning,) = result.plan.warnings
        assert "F32.gguf is not quantized: its tensors are taken as they are" in warning
        for name, weights in read_weights(tmp_path / "out.gguf").items():
            np.testing.assert_array_equal(weights, truth[name])

    def test_integers_are_copied(
        self, make: Make, tmp_path: Path, rng: np.random.Generator
    ) -> None:
        table = rng.integers(-(2**31), 2**31, (3, 40))
        extra = {"blk.0.table": stored("I32", table)}
        paths = [make("Q5_K", extra), make("Q4_K", extra)]
        for outtype in ("f16", "f32"):
            result = merge(paths, tmp_path / "out.gguf", outtype=outtype)
            assert not result.plan.warnings
            written = read_tensors(tmp_path / "out.gguf")["blk.0.table"]
            assert written.kind == "I32"
            np.testing.assert_array_equal(written.rows, table)


@pytest.mark.parametrize("method", COMBINING)
@pytest.mark.parametrize(
    ("fine", "coarse"),
    [
        ("Q4_K", "IQ3_S"),
        ("Q4_K", "IQ3_XXS"),
        ("Q4_K", "IQ2_XS"),
        ("Q4_K", "IQ2_XXS"),
        ("IQ3_S", "Q3_K"),
        ("IQ3_S", "IQ2_S"),
    ],
)
def test_types_without_cells_help(
    make: Make,
    tmp_path: Path,
    truth: dict[str, F32Array],
    method: str,
    fine: str,
    coarse: str,
) -> None:
    paths = [make(kind) for kind in (coarse, fine)]
    result = merge(paths, tmp_path / "out.gguf", method=method, outtype="f32")
    assert [each.plan.action for each in result.tensors] == ["merge", "copy", "merge"]
    error = squared_error(read_weights(tmp_path / "out.gguf"), truth)
    alone = [squared_error(read_weights(path), truth) for path in paths]
    assert error < min(alone)
    # Their errors lean towards zero all together, and so are not quite independent.
    assert result.expected_mse_ratio == pytest.approx(error / min(alone), rel=0.2)


@pytest.mark.parametrize("method", COMBINING)
def test_codes_that_prove_nothing_help(
    make: Make, tmp_path: Path, truth: dict[str, F32Array], method: str
) -> None:
    refitted = {name: stored("Q5_0", truth[name], imatrix=True) for name in MATRICES}
    paths = [
        make("Q5_0", refitted, add=lambda writer: writer.add_string("quantize.imatrix.file", "x")),
        make("Q4_K"),
    ]
    result = merge(paths, tmp_path / "out.gguf", method=method, outtype="f32")
    error = squared_error(read_weights(tmp_path / "out.gguf"), truth)
    alone = [squared_error(read_weights(path), truth) for path in paths]
    assert alone[0] < alone[1]
    assert result.expected_mse_ratio == pytest.approx(error / alone[0], rel=0.1)
    assert error < 0.85 * alone[0]


class TestSplitInputs:
    def test_parts_are_one_model(self, make: Make, tmp_path: Path) -> None:
        whole = [make("Q5_K"), make("Q4_K"), make("Q2_K")]
        make("Q5_K", name="five", split_max_tensors=2)
        make("Q4_K", name="four", split_max_tensors=1)
        parts = [tmp_path / "five-00002-of-00002.gguf", tmp_path / "four-00001-of-00003.gguf"]
        assert all(part.exists() for part in parts)
        from_whole = merge(whole, tmp_path / "from_whole.gguf")
        from_parts = merge([*parts, whole[2]], tmp_path / "from_parts.gguf")
        assert tensor_bytes(tmp_path / "from_parts.gguf") == tensor_bytes(
            tmp_path / "from_whole.gguf"
        )
        assert from_parts.expected_mse_ratio == from_whole.expected_mse_ratio

    def test_a_part_is_never_overwritten(self, make: Make, tmp_path: Path) -> None:
        make("Q5_K", name="five", split_max_tensors=2)
        parts = sorted(tmp_path.glob("five-*.gguf"))
        before = [part.read_bytes() for part in parts]
        with pytest.raises(OutputError, match="one of the inputs"):
            merge([parts[0], make("Q4_K")], parts[1])
        assert [part.read_bytes() for part in parts] == before


@pytest.mark.parametrize("method", method_names())
def test_threads_change_nothing(tiny: list[Path], tmp_path: Path, method: str) -> None:
    output = tmp_path / "out.gguf"
    written = []
    for n_threads in (1, 3):
        result = merge(tiny, output, method=method, tensors=r"blk\.0", n_threads=n_threads)
        figures = result.to_json()
        assert figures.pop("seconds") > 0
        assert figures.pop("weights_per_second") > 0
        written.append((json.dumps(figures), output.read_bytes()))
    assert written[0] == written[1]


@pytest.mark.parametrize("method", ["posterior", "midpoint"])
def test_files_of_different_models_are_refused(
    tiny: list[Path], tmp_path: Path, method: str
) -> None:
    """The same names and shapes, but in one tensor other weights."""
    other = tmp_path / "other.gguf"
    data = bytearray(tiny[1].read_bytes())
    model = open_gguf(tiny[1])
    tensor = model.tensors["blk.1.ffn_up.weight"]
    start = model.header.data_start + tensor.info.offset
    half = tensor.raw.size // 2  # swaps the halves of the matrix
    data[start : start + 2 * half] = bytes(tensor.raw[half:]) + bytes(tensor.raw[:half])
    other.write_bytes(data)
    output = tmp_path / "out.gguf"
    plan = plan_merge([tiny[0], other], output, method=method)
    with pytest.raises(PlanError, match=r"tensors 'blk\.1\.ffn_up\.weight' \(\d\d\.\d%\):"):
        execute_merge(plan)
    assert list(tmp_path.iterdir()) == [other]
    result = execute_merge(plan, force=True)
    fractions = {t.plan.name: t.conflict_fraction for t in result.tensors}
    fraction = fractions["blk.1.ffn_up.weight"]
    assert fraction is not None
    assert fraction > 0.3
    assert fractions["blk.1.ffn_gate.weight"] == 0


def test_a_file_quantized_from_another_input_is_refused(
    tiny: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They never contradict each other, but the child tells nothing new."""
    child, output = tmp_path / "child.gguf", tmp_path / "out.gguf"
    made = ["quantize", str(tiny[0]), "Q4_0", "-o", str(child), "--allow-requantize", "-q"]
    assert main(made) == 0
    arguments = ["merge", str(tiny[0]), str(child), "-o", str(output)]
    assert main(arguments) == 1
    message = capsys.readouterr().err
    assert f"{child} was quantized from {tiny[0]}, not from the original" in message
    assert not output.exists()
    assert main([*arguments, "--force", "-q"]) == 0
    assert output.exists()


@pytest.mark.parametrize("how", ["path", "hard link", "symbolic link", "copy"])
def test_a_file_that_is_there_twice(how: str, make: Make, tmp_path: Path) -> None:
    first, other = make("Q4_0"), make("Q5_0")
    second = first if how == "path" else tmp_path / "again.gguf"
    if how == "hard link":
        second.hardlink_to(first)
    elif how == "symbolic link":
        second.symlink_to(first)
    elif how == "copy":
        second.write_bytes(first.read_bytes())
    what = {
        "path": f"{first} is given more than once",
        "copy": f"{second} has the same weights as {first}, byte for byte",
    }.get(how, f"{second} and {first} are the same file")
    plan = plan_merge([first, other, second], tmp_path / "out.gguf")
    assert [each for each in plan.warnings if "counts once" in each] == [f"{what}: it counts once"]
    plan = plan_merge([first, other], tmp_path / "out.gguf")
    assert not any("counts once" in each for each in plan.warnings)


@pytest.mark.parametrize("change", ["none", "scaled", "noisy"])
@pytest.mark.parametrize("fine", ["BF16", "Q6_K"])
@pytest.mark.parametrize(("coarse", "size"), [("Q5_0", 0.1), ("IQ3_S", 1.0)])
def test_inputs_without_cells_that_take_no_part_are_compared(
    change: str,
    fine: str,
    coarse: str,
    size: float,
    make: Make,
    truth: dict[str, F32Array],
    tmp_path: Path,
    rng: np.random.Generator,
) -> None:
    weights = {name: truth[name] for name in MATRICES}
    for name, x in weights.items():
        if change != "none":
            off = x if change == "scaled" else rng.normal(0, x.std(), x.shape)
            weights[name] = (x + size * off).astype(np.float32)
    coarse_path = make(
        coarse,
        {name: stored(coarse, x, imatrix=True) for name, x in weights.items()},
        add=lambda writer: writer.add_string("quantize.imatrix.file", "x"),
    )
    paths = [make(fine), coarse_path]
    output = tmp_path / "out.gguf"
    if change == "none":
        merge(paths, output, method="best", outtype="f16")
    else:
        with pytest.raises(PlanError, match="contradict each other on tensors"):
            merge(paths, output, method="best", outtype="f16")


def test_files_without_tensors_have_nothing_in_common(tmp_path: Path) -> None:
    files = []
    for name in ("a", "b"):
        entries = [kv("general.architecture", STRING, string("llama"))]
        entries += [kv("general.name", STRING, string(name))]
        files.append(tmp_path / f"{name}.gguf")
        files[-1].write_bytes(file_of([], entries))
    with pytest.raises(PlanError, match=r"a\.gguf: they have no tensor in common"):
        plan_merge(files, tmp_path / "out.gguf")
