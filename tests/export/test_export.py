"""What an export writes, and what it refuses."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import recover.export.work as working
from recover.cli import main
from recover.errors import OutputError, PlanError, UsageError
from recover.export.execute import ExportResult, execute_export
from recover.export.plan import plan_export
from tests.support.gguf_files import Stored, read_weights, stored, write_gguf
from tests.support.golden_models import as_float32, read_arrays, rewrite, write_golden_gguf
from tests.support.random_folders import folder_of, golden

QUERY = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return write_golden_gguf(golden("llama"), tmp_path / "llama.gguf")


def export(model: Path, output: Path, **options: Any) -> ExportResult:
    return execute_export(plan_export(model, output, **options), n_threads=2)


def numbers(folder: Path) -> dict[str, np.ndarray]:
    return {name: as_float32(kind, data) for name, (kind, _, data) in read_arrays(folder).items()}


def test_outtypes_and_what_is_rounded(llama: Path, tmp_path: Path) -> None:
    exact = numbers(tmp_path / "llama.folder")
    for outtype in ("bf16", "f16", "f32"):
        result = export(llama, tmp_path / outtype, outtype=outtype)
        found = read_arrays(tmp_path / outtype)
        assert {kind for kind, _, _ in found.values()} <= {outtype.upper(), "F32"}
        assert found[QUERY][0] == outtype.upper()
        document = result.to_json()
        assert document["exact"] == all(each["exact"] for each in document["tensors"])
        for each in document["tensors"]:
            kind, _, data = found[each["arrays"][0]]
            off = as_float32(kind, data).astype(np.float64) - exact[each["arrays"][0]]
            assert each["n_rounded"] == np.count_nonzero(off)
            rms = np.sqrt(np.sum(off**2) / np.sum(exact[each["arrays"][0]].astype(np.float64) ** 2))
            assert each["relative_rms_rounding"] == pytest.approx(rms, rel=1e-3, abs=1e-12)
        assert document["exact"] == (outtype != "f16")


def test_vectors_that_the_type_does_not_hold_stay(tmp_path: Path) -> None:
    known = golden("llama")
    norm = "model.layers.1.input_layernorm.weight"
    model = write_golden_gguf(known, tmp_path / "model.gguf")
    weights = {name: Stored("F32", each) for name, each in read_weights(model).items()}
    weights["blk.1.attn_norm.weight"] = Stored("F32", np.full(64, np.float32(1 / 3)))

    odd = rewrite(known, tmp_path / "odd.gguf", weights)
    export(odd, tmp_path / "out", outtype="bf16")
    found = read_arrays(tmp_path / "out")
    assert found[norm][0] == "F32"
    assert (as_float32(*found[norm][::2]) == np.float32(1 / 3)).all()
    assert found[norm.replace("1.input", "0.input")][0] == "BF16"


def test_shards_and_their_index(llama: Path, tmp_path: Path) -> None:
    result = export(llama, tmp_path / "out", max_shard_size=20_000)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    shards = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    n = len(shards)
    assert n > 3
    assert shards == [f"model-{i:05}-of-{n:05}.safetensors" for i in range(1, n + 1)]
    assert set(index["weight_map"].values()) == set(shards)
    whole = export(llama, tmp_path / "whole")
    assert result.n_exact == whole.n_exact
    assert read_arrays(tmp_path / "out") == read_arrays(tmp_path / "whole")
    total = sum(len(data) for _, _, data in read_arrays(tmp_path / "out").values())
    assert index["metadata"]["total_size"] == total
    for name, file in index["weight_map"].items():
        assert name.encode() in (tmp_path / "out" / file).read_bytes()


def test_quantized_models_are_decoded(tmp_path: Path) -> None:
    known = golden("llama")
    known["metadata"]["llama.rope.freq_base"][1] = 5e5
    model = write_golden_gguf(known, tmp_path / "model.gguf")
    weights = read_weights(model)
    wide = {
        name: stored("Q4_0", each) if each.ndim > 1 else Stored("F32", each)
        for name, each in weights.items()
    }

    quantized = rewrite(known, tmp_path / "q4.gguf", wide)
    export(quantized, tmp_path / "out", outtype="f32")
    decoded = read_weights(quantized)
    found = numbers(tmp_path / "out")
    np.testing.assert_array_equal(
        found["model.layers.1.mlp.down_proj.weight"], decoded["blk.1.ffn_down.weight"].reshape(-1)
    )
    heads = decoded["blk.1.attn_k.weight"].reshape(2, 8, 2, 64).swapaxes(1, 2).reshape(-1)
    np.testing.assert_array_equal(found["model.layers.1.self_attn.k_proj.weight"], heads)


def test_unknown_architectures_have_their_own_names(tmp_path: Path) -> None:
    weights = {"token_embd.weight": stored("F32", np.ones((4, 32), np.float32))}
    model = write_gguf(tmp_path / "model.gguf", weights, architecture="mamba")
    with pytest.raises(PlanError, match=r"architecture 'mamba'.*--names gguf"):
        plan_export(model, tmp_path / "out")
    export(model, tmp_path / "out", names="gguf")
    (found,) = read_arrays(tmp_path / "out").items()
    assert found[0] == "token_embd.weight"
    assert found[1][:2] == ("BF16", (4, 32))
    assert not (tmp_path / "out" / "config.json").exists()


def test_tensors_without_a_place_are_named(tmp_path: Path) -> None:
    known = golden("llama")
    model = write_golden_gguf(known, tmp_path / "model.gguf")
    weights = {name: Stored("F32", each) for name, each in read_weights(model).items()}
    weights["blk.0.ssm_in.weight"] = Stored("F32", np.ones((2, 64), np.float32))

    odd = rewrite(known, tmp_path / "odd.gguf", weights)
    with pytest.raises(PlanError, match=r"tensors 'blk\.0\.ssm_in\.weight' have no place"):
        plan_export(odd, tmp_path / "out")


def test_configuration_of_a_folder(llama: Path, tmp_path: Path) -> None:
    folder = folder_of(golden("llama"), tmp_path / "other")
    config = json.loads((folder / "config.json").read_text())
    config |= {"rope_theta": 31.0, "quantization_config": {"quant_method": "fp8"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "chat_template.jinja").write_text("hello")
    (folder / "pytorch_model.bin").write_bytes(b"no")
    export(llama, tmp_path / "out", config=folder)
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["rope_theta"] == 31.0
    assert written["torch_dtype"] == "bfloat16"
    assert "quantization_config" not in written
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "chat_template.jinja",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "qwen2"}, "model_type 'qwen2', but the model is 'llama'"),
        ({"hidden_size": 32}, "contradicts the model.*hidden_size"),
        ({"num_key_value_heads": 4}, "contradicts the model.*num_key_value_heads"),
        ({"num_hidden_layers": 3}, "has 2 layers, but config.json says 3"),
        ({"vocab_size": 65}, "contradicts the model.*vocab_size"),
        ({"num_local_experts": 8}, "there are no experts"),
    ],
)
def test_configuration_that_contradicts_shapes(
    llama: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    folder = folder_of(golden("llama"), tmp_path / "other")
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(PlanError, match=message):
        plan_export(llama, tmp_path / "out", config=folder)
    assert not (tmp_path / "out").exists()


def test_numbers_that_do_not_fit(tmp_path: Path) -> None:
    known = golden("llama")
    model = write_golden_gguf(known, tmp_path / "model.gguf")
    raw = bytearray(model.read_bytes())
    plan = plan_export(model, tmp_path / "out", outtype="f16")
    tensor = next(each.source for each in plan.tensors if each.name == "blk.0.ffn_up.weight")
    start = raw.find(tensor.part(0, tensor.n_weights).tobytes())
    raw[start : start + 4] = np.float32(1e5).tobytes()
    large = tmp_path / "large.gguf"
    large.write_bytes(raw)
    with pytest.raises(PlanError, match=r"'blk.0.ffn_up.weight': a weight of 100000 is beyond"):
        export(large, tmp_path / "out", outtype="f16")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "large.gguf",
        "model.folder",
        "model.gguf",
    ]


def test_options(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="q8_0"):
        plan_export(llama, tmp_path / "out", outtype="q8_0")
    with pytest.raises(UsageError, match="latin"):
        plan_export(llama, tmp_path / "out", names="latin")
    with pytest.raises(OutputError, match="holds one of the inputs"):
        plan_export(llama, tmp_path, force=True)


def test_command(llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["export", str(llama), "-o", str(tmp_path / "out"), "--threads", "1"]
    assert main([*arguments, "--json", "--max-shard-size", "20KB"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["output"] == str(tmp_path / "out")
    assert sorted(document["files"]) == sorted(path.name for path in (tmp_path / "out").iterdir())
    assert main(arguments) == 1
    assert "is there already; --force replaces it" in capsys.readouterr().err
    assert main([*arguments, "--force"]) == 0
    said = capsys.readouterr()
    assert "wrote" in said.out
    assert "exact: 29 of 29 tensors" in said.out
    assert "no tokenizer" in said.err


def test_interrupted(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(working, "put_all", lambda *_: 1 / 0)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ZeroDivisionError):
        export(llama, tmp_path / "out", outtype="bf16")
    assert sorted(tmp_path.iterdir()) == before


def test_parts_of_an_array_are_refused(tmp_path: Path) -> None:
    """Gate without up, of gpt-oss."""
    known = golden("gpt_oss")
    del known["tensors"]["blk.1.ffn_up_exps.weight"]
    model = write_golden_gguf(known, tmp_path / "model.gguf")
    with pytest.raises(PlanError, match="needs 49,152 weights"):
        plan_export(model, tmp_path / "out")
