"""Whole files quantized as llama.cpp does it: types, bytes, metadata, permissions, errors."""

import json
import re
import tracemalloc
from pathlib import Path

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

from recover.cli import main
from recover.cli.quantize import _NAMES, _QUANTIZERS, _TYPES
from recover.containers.gguf.reader import open_gguf
from recover.errors import PlanError
from recover.quantize.execute import execute_quantize
from recover.quantize.mixes import MIXES
from recover.quantize.plan import plan_quantize
from recover.quants import ScalarType, all_types, quantizer_names, type_by_name, types_of_files
from tests.golden.make_quantized import FTYPES
from tests.oracle import libggml
from tests.support.gguf_files import write_out
from tests.support.models import TINY, quantize
from tests.support.quantizing import (
    importances,
    normal,
    refusal,
    run,
    stored,
    weights,
    write_legacy,
    write_model,
)

FILE_TYPES = {name: kind.file_type for name, kind in types_of_files().items()}
FALLBACKS = {"Q2_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0", "IQ4_XS": "IQ4_NL"}


def types_of(path: Path) -> list[str]:
    """Arguments that give every quantized tensor the type that it has in a file."""
    rules = []
    for tensor in open_gguf(path).tensors.values():
        if tensor.type.block_size > 1:
            rules += ["--tensor-type", f"^{re.escape(tensor.name)}$={tensor.type.name}"]
    return rules


def assert_same_tensors(ours: Path, theirs: Path) -> None:
    mine, reference = stored(open_gguf(ours)), stored(open_gguf(theirs))
    assert mine.keys() == reference.keys()
    assert [name for name in mine if mine[name] != reference[name]] == []


@pytest.mark.parametrize("name", ["Q5_K_M", "Q4_K_M", "Q2_K"])
def test_the_small_model_becomes_what_llama_cpp_makes_of_it(
    name: str, tiny: list[Path], tmp_path: Path
) -> None:
    theirs = next(path for path in tiny if name in path.name)
    ours = tmp_path / "out.gguf"
    run(TINY, name.removesuffix("_M"), "-o", ours, *types_of(theirs))
    assert_same_tensors(ours, theirs)
    assert open_gguf(ours).get("general.file_type") == FTYPES[name]


@pytest.mark.parametrize("name", ["Q5_K_M", "Q4_K_M", "Q2_K"])
def test_the_larger_model_becomes_what_llama_cpp_makes_of_it(
    name: str, llama_29m: Path, quantized_29m: dict[str, Path], tmp_path: Path
) -> None:
    ours = tmp_path / "out.gguf"
    run(llama_29m, name.removesuffix("_M"), "-o", ours, *types_of(quantized_29m[name]))
    assert_same_tensors(ours, quantized_29m[name])


@pytest.mark.parametrize("name", [each for each in FILE_TYPES if not type_by_name(each).writer])
def test_pure_types(name: str, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    run(TINY, name.lower(), "-o", out)
    before, after = open_gguf(TINY), open_gguf(out)
    assert list(before.tensors) == list(after.tensors)
    for tensor in after.tensors.values():
        if len(tensor.dims) == 1:
            assert bytes(tensor.raw) == bytes(before.tensors[tensor.name].raw)
            continue
        assert tensor.type.name == name
        expected = libggml.quantize(tensor.type.type_id, weights(before, tensor.name))
        assert np.array_equal(tensor.raw, expected.view(np.uint8)), tensor.name


@pytest.mark.parametrize("name", ["Q4_0", "Q4_K"])
def test_metadata_are_those_of_the_input(name: str, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    run(TINY, name, "-o", out)
    before, after = open_gguf(TINY).metadata, open_gguf(out).metadata
    changed = {"general.file_type", "general.quantization_version"}
    kept = [entry.span for key, entry in before.items() if key not in changed]
    assert [entry.span for key, entry in after.items() if key not in changed] == kept
    assert after["general.file_type"].value == FILE_TYPES[name]
    assert after["general.quantization_version"].value == 2


def test_gguf_py_opens_it(tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    run(TINY, "Q4_K", "-o", out)
    reader = gguf.GGUFReader(out)
    assert reader.fields["general.file_type"].contents() == 15
    kinds = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert kinds["output.weight"] == "Q4_K"
    assert kinds["output_norm.weight"] == "F32"


def test_types_of_the_command_line_are_those_of_the_library(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        main(["quantize", "--help"])
    listed = (
        "Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_NL, IQ4_XS, MXFP4,"
        " IQ2_KT, IQ3_KT, IQ4_KT, F16, BF16, F32,"
        " Q3_K_S, Q3_K_M, Q3_K_L, Q4_K_S, Q4_K_M, Q5_K_S, Q5_K_M, Q2_K_S, MXFP4_MOE"
    )
    said = " ".join(capsys.readouterr().out.split())
    assert f" a type, or a mix by llama.cpp's name: {listed} options:" in said
    assert listed.split(", ") == list(_NAMES)
    assert set(_TYPES) == set(FILE_TYPES)
    kinds = [kind for kind in all_types() if isinstance(kind, ScalarType)]
    assert set(_QUANTIZERS) == {name for kind in kinds for name in quantizer_names(kind)}
    assert {"F16": 1, **{mix.name: mix.file_type for mix in MIXES.values()}} == FTYPES


def odd_model(path: Path, rng: np.random.Generator) -> Path:
    """Rows of 288 weights, which are no whole superblocks, and of 80, which are no whole blocks."""
    n = 288
    shapes = {
        "token_embd.weight": (8, n),
        "output_norm.weight": (n,),
        "output.weight": (8, n),
        "blk.0.attn_norm.weight": (n,),
        **{f"blk.0.attn_{part}.weight": (n, n) for part in ("q", "k", "v", "output")},
        "blk.0.ffn_norm.weight": (n,),
        "blk.0.ffn_up.weight": (80, n),
        "blk.0.ffn_gate.weight": (80, n),
        "blk.0.ffn_down.weight": (n, 80),
    }
    return write_model(path, {name: normal(rng, *shape) for name, shape in shapes.items()})


def test_rows_that_are_no_whole_blocks(
    tmp_path: Path, rng: np.random.Generator, capsys: pytest.CaptureFixture[str]
) -> None:
    """The types are llama.cpp's; its mixes differ from a pure type in output and attn_v."""
    source = odd_model(tmp_path / "odd.gguf", rng)
    names = ("Q2_K", "Q4_K_M", "Q5_K_M", "Q6_K", "IQ4_XS")
    for name, theirs in zip(names, quantize(source, tmp_path, names), strict=True):
        ours = tmp_path / "out.gguf"
        pure = name.removesuffix("_M")
        assert main(["quantize", str(source), pure, "-o", str(ours)]) == 0
        assert f"no whole {pure} blocks, {FALLBACKS[pure]} is taken" in capsys.readouterr().err
        mine, reference = stored(open_gguf(ours)), stored(open_gguf(theirs))
        for tensor, expected in reference.items():
            if tensor not in ("output.weight", "blk.0.attn_v.weight"):
                assert mine[tensor] == expected, (name, tensor)
        assert mine["blk.0.attn_q.weight"][0] == FALLBACKS[pure]
        assert mine["blk.0.ffn_down.weight"][0] == "F16"


def test_what_is_left_as_it_is(tmp_path: Path, rng: np.random.Generator) -> None:
    left = (
        "blk.0.attn_q_norm.weight",
        "blk.0.attn_q.bias",
        "blk.0.ffn_gate_inp.weight",
        "blk.0.ssm_conv1d.weight",
        "blk.0.time_mix_w1.weight",
        "position_embd.weight",
        "token_types.weight",
    )
    tensors: dict[str, NDArray[np.generic]] = {name: normal(rng, 3, 64) for name in left}
    tensors["blk.0.one_row.weight"] = normal(rng, 1, 64)
    tensors["blk.0.table.weight"] = np.arange(64, dtype=np.int32).reshape(2, 32)
    tensors["blk.0.attn_q.weight"] = normal(rng, 3, 64)
    source = write_model(tmp_path / "in.gguf", tensors)
    run(source, "Q8_0", "-o", tmp_path / "out.gguf")
    before, after = stored(open_gguf(source)), stored(open_gguf(tmp_path / "out.gguf"))
    assert [name for name in after if after[name] != before[name]] == ["blk.0.attn_q.weight"]


def test_rules_of_one_architecture(tmp_path: Path, rng: np.random.Generator) -> None:
    for architecture, kind in (("llama", "Q8_0"), ("glm5-next", "F32")):
        tensors = {"blk.0.attn_k_b.weight": normal(rng, 3, 64)}
        source = write_model(tmp_path / "in.gguf", tensors, architecture)
        run(source, "Q8_0", "-o", tmp_path / "out.gguf")
        assert open_gguf(tmp_path / "out.gguf").tensors["blk.0.attn_k_b.weight"].type.name == kind


def test_the_first_matching_rule_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rules = ("blk.0=Q6_K", r"ffn_(up|gate)=q5_k", "norm=Q8_0", "a=b=F16")
    arguments = [argument for rule in rules for argument in ("--tensor-type", rule)]
    assert main(["quantize", str(TINY), "Q4_0", "-o", str(tmp_path / "out.gguf"), *arguments]) == 0
    kinds = {t.name: t.type.name for t in open_gguf(tmp_path / "out.gguf").tensors.values()}
    assert kinds["blk.0.ffn_up.weight"] == kinds["blk.0.attn_q.weight"] == "Q6_K"
    assert kinds["blk.1.ffn_up.weight"] == kinds["blk.1.ffn_gate.weight"] == "Q5_K"
    assert kinds["blk.1.ffn_down.weight"] == "Q4_0"
    assert kinds["blk.0.attn_norm.weight"] == "F32"
    messages = capsys.readouterr().err.splitlines()
    assert messages == [
        f"recover: warning: no tensor was given its type by {p!r}" for p in ("norm", "a=b")
    ]


def test_leave_output_tensor(tmp_path: Path) -> None:
    run(TINY, "Q4_0", "-o", tmp_path / "out.gguf", "--leave-output-tensor")
    before, after = stored(open_gguf(TINY)), stored(open_gguf(tmp_path / "out.gguf"))
    assert after["output.weight"] == before["output.weight"]
    assert after["token_embd.weight"][0] == "Q4_0"


def test_requantizing_needs_permission(
    tiny: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tiny[1], tmp_path / "out.gguf"
    for kind in ("Q4_K", "F16"):
        line = refusal(capsys, source, kind, "-o", out)
        assert "'output.weight' (Q6_K)" in line
        assert "--allow-requantize" in line
        assert not out.exists()
    assert main(["quantize", str(source), "Q4_K", "-o", str(out), "--allow-requantize"]) == 0
    assert "precision is lost a second time" in capsys.readouterr().err
    before, after = open_gguf(source), open_gguf(out)
    same = before.tensors["blk.0.attn_q.weight"]
    assert bytes(same.raw) == bytes(after.tensors[same.name].raw)
    expected = libggml.quantize(type_by_name("Q4_K").type_id, weights(before, "output.weight"))
    assert np.array_equal(after.tensors["output.weight"].raw, expected)


def test_same_type_needs_no_permission(tmp_path: Path) -> None:
    run(TINY, "Q4_0", "-o", tmp_path / "one.gguf")
    run(tmp_path / "one.gguf", "Q4_0", "-o", tmp_path / "two.gguf")
    assert (tmp_path / "one.gguf").read_bytes() == (tmp_path / "two.gguf").read_bytes()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["blk.0.attn_q.weight", "blk.0.attn_norm.weight"])
def test_weights_that_are_no_numbers(
    bad: float,
    name: str,
    tmp_path: Path,
    rng: np.random.Generator,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tensors = {each: normal(rng, 3, 64) for each in ("blk.0.attn_q.weight", "blk.0.ffn_up.weight")}
    tensors["blk.0.attn_norm.weight"] = normal(rng, 64)
    tensors[name].reshape(-1)[7] = bad
    source = write_model(tmp_path / "in.gguf", tensors)
    line = refusal(capsys, source, "Q4_0", "-o", tmp_path / "out.gguf")
    assert f"{source}: tensor '{name}' holds NaN or infinite weights" in line
    assert [path.name for path in tmp_path.iterdir()] == ["in.gguf"]


@pytest.mark.parametrize("kind", ["F16", "Q4_0", "Q8_0", "Q4_1"])
def test_weights_too_large_for_the_type(
    kind: str, tmp_path: Path, rng: np.random.Generator, capsys: pytest.CaptureFixture[str]
) -> None:
    x = normal(rng, 3, 64)
    x[1, 7] = -1e8
    source = write_model(tmp_path / "in.gguf", {"blk.0.attn_q.weight": x})
    line = refusal(capsys, source, kind, "-o", tmp_path / "out.gguf")
    assert "'blk.0.attn_q.weight': a weight of 1e+08 is beyond the range" in line
    assert [path.name for path in tmp_path.iterdir()] == ["in.gguf"]
    run(source, "BF16", "-o", tmp_path / "out.gguf")


@pytest.mark.parametrize("kind", ["Q6_K", "Q3_K", "IQ4_XS"])
def test_weights_whose_squares_are_beyond_float32(
    kind: str, tmp_path: Path, rng: np.random.Generator, capsys: pytest.CaptureFixture[str]
) -> None:
    """Their encoders give a superblock of zeros."""
    x = normal(rng, 3, 256)
    x[1, 7] = 1e30
    source = write_model(tmp_path / "in.gguf", {"blk.0.attn_q.weight": x})
    line = refusal(capsys, source, kind, "-o", tmp_path / "out.gguf")
    assert "'blk.0.attn_q.weight': a weight of 1e+30 is beyond the range" in line
    assert [path.name for path in tmp_path.iterdir()] == ["in.gguf"]


@pytest.mark.parametrize("kind", ["missing", "garbage", "truncated", "no tensors"])
def test_bad_inputs_leave_nothing(
    kind: str, tiny: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.gguf"
    if kind == "no tensors":
        write_model(bad, {})
    elif kind != "missing":
        bad.write_bytes({"garbage": b"x" * 99, "truncated": TINY.read_bytes()[:-1]}[kind])
    before = sorted(tmp_path.iterdir())
    assert str(bad) in refusal(capsys, bad, "Q4_0", "-o", tmp_path / "out.gguf")
    assert sorted(tmp_path.iterdir()) == before


def test_wrong_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for wrong in (
        ["Q9_K"],
        ["IQ2_XXS"],
        ["Q4_0", "--tensor-type", "ffn"],
        ["Q4_0", "--tensor-type", "=Q4_0"],
        ["Q4_0", "--tensor-type", "ffn=Q9_K"],
    ):
        with pytest.raises(SystemExit) as caught:
            main(["quantize", str(TINY), *wrong, "-o", str(tmp_path / "out.gguf")])
        assert caught.value.code == 2
    assert capsys.readouterr().out == ""
    with pytest.raises(SystemExit):
        main(["quantize", str(TINY), "iq3_xxs", "-o", str(tmp_path / "out.gguf")])
    assert "IQ3_XXS is read, not written; take one of Q4_0, " in capsys.readouterr().err
    wrong = ["Q4_0", "-o", str(tmp_path / "o.gguf"), "--tensor-type", "(=Q4_0"]
    assert main(["quantize", str(TINY), *wrong]) == 2
    assert "no regular expression" in capsys.readouterr().err
    with pytest.raises(PlanError, match="files cannot be made 'Q9_K'; known are F32, F16"):
        plan_quantize(TINY, tmp_path / "out.gguf", "Q9_K")


def test_threads_do_not_matter(tmp_path: Path, rng: np.random.Generator) -> None:
    imatrix = write_legacy(tmp_path / "imatrix.dat", importances(rng), n_calls=1)
    for n_threads in (1, 3):
        arguments = ("--imatrix", imatrix, "--threads", n_threads)
        run(TINY, "Q4_K", "-o", tmp_path / f"{n_threads}.gguf", *arguments)
    assert (tmp_path / "1.gguf").read_bytes() == (tmp_path / "3.gguf").read_bytes()


def test_split_input_becomes_one_file(tmp_path: Path, rng: np.random.Generator) -> None:
    names = [tmp_path / f"in-0000{i}-of-00002.gguf" for i in (1, 2)]
    x = normal(rng, 3, 64)
    for number, path in enumerate(names):
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", 2)
        writer.add_tensor(f"blk.{number}.attn_q.weight", x)
        write_out(writer)
    run(names[1], "Q4_0", "-o", tmp_path / "out.gguf")
    model = open_gguf(tmp_path / "out.gguf")
    assert [tensor.type.name for tensor in model.tensors.values()] == ["Q4_0", "Q4_0"]
    assert not any(key.startswith("split.") for key in model.metadata)


def test_rows_longer_than_a_tile(tmp_path: Path, rng: np.random.Generator) -> None:
    x = normal(rng, 3, 70_144)
    source = write_model(tmp_path / "in.gguf", {"output.weight": x})
    run(source, "IQ4_XS", "-o", tmp_path / "out.gguf")
    raw = open_gguf(tmp_path / "out.gguf").tensors["output.weight"].raw
    assert np.array_equal(raw, libggml.quantize(type_by_name("IQ4_XS").type_id, x))


def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    source, out = tmp_path / "in.gguf", tmp_path / "out.gguf"
    write_model(source, {"output.weight": np.zeros((16_384, 1024), np.float16)})
    execute_quantize(plan_quantize(TINY, out, "Q8_0"), n_threads=1)
    plan = plan_quantize(source, out, "Q8_0")
    tracemalloc.start()
    execute_quantize(plan, n_threads=2)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert source.stat().st_size > 32 << 20
    assert peak < 12 << 20


def test_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.gguf"
    command = ["quantize", str(TINY), "q4_k", "-o", str(out), "--json"]
    assert main([*command, "--dry-run"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert not out.exists()
    assert list(plan) == ["output", "type", "input", "imatrix", "n_bytes", "warnings", "tensors"]
    assert plan["tensors"][0] == {
        "name": "token_embd.weight",
        "dims": [256, 1024],
        "action": "quantize",
        "type": "BF16",
        "outtype": "Q4_K",
        "uses_imatrix": False,
        "position": plan["tensors"][0]["position"],
    }
    assert main(command) == 0
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert captured.err == ""
    assert list(document) == [
        "output",
        "type",
        "input",
        "imatrix",
        "n_weights",
        "n_bytes",
        "bits_per_weight",
        "seconds",
        "weights_per_second",
        "warnings",
        "tensors",
    ]
    assert document["n_bytes"] == plan["n_bytes"] == out.stat().st_size
    assert document["bits_per_weight"] == pytest.approx(4.5, abs=0.03)
    assert document["tensors"][0] == {
        "name": "token_embd.weight",
        "shape": [256, 1024],
        "action": "quantize",
        "from": "BF16",
        "to": "Q4_K",
        "uses_imatrix": False,
    }


def test_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["quantize", str(TINY), "Q4_K", "-o", str(tmp_path / "out.gguf")]
    assert main([*command, "--dry-run"]) == 0
    assert "blk.0.ffn_up.weight" in capsys.readouterr().out
    assert main([*command, "--verbose"]) == 0
    text = capsys.readouterr().out
    assert "blk.0.ffn_up.weight" in text
    assert "4.5" in text
    assert f"wrote {tmp_path / 'out.gguf'}" in text


@pytest.mark.parametrize(
    ("architecture", "warned"),
    [
        ("hyvid", "the architecture 'hyvid'"),
        ("", "no architecture"),
        ("wan", "the architecture 'wan'"),
        ("llama", None),
        ("qwen3moe", None),
        ("glm5-next", None),
    ],
)
def test_architectures_without_rules(
    architecture: str, warned: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    source = write_model(tmp_path / "f16.gguf", {"img_in.weight": normal(rng, 4, 64)}, architecture)
    assert main(["quantize", str(source), "Q8_0", "-o", str(tmp_path / "q.gguf")]) == 0
    err = capsys.readouterr().err
    assert ("--tensor-type REGEX=F16" in err) == (warned is not None)
    assert warned is None or f"has {warned}, and llama.cpp is not known to have rules" in err
