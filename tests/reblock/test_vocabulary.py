"""Re-blocked models without a vocabulary say so, and take one from another file."""

import json
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter

from recover.cli import main
from tests.oracle.llama_cpp import LlamaModel
from tests.support.gguf_files import write_out
from tests.support.llama_folders import N_TOKENS, folder
from tests.support.quantized_folders import refusal
from tests.support.reblock_files import reblock

pytestmark = pytest.mark.inference

SAID = "the output has no vocabulary"


def other_file(path: Path, like: Path, arch: str = "qwen2", n_tokens: int = N_TOKENS) -> Path:
    """A GGUF file with the tensors of another one, and with a vocabulary."""
    writer = GGUFWriter(path, arch)
    for key, field in GGUFReader(like).fields.items():
        if key.startswith("qwen2."):
            own = key.replace("qwen2.", f"{arch}.")
            value = field.contents()
            add = writer.add_float32 if isinstance(value, float) else writer.add_uint32
            add(own, value)
    writer.add_uint32("general.file_type", 99)
    writer.add_string("general.name", "the other file")
    writer.add_string("recover.method", "linear")
    writer.add_tokenizer_model("llama")
    letters = ["\u2581", *(chr(ord("A") + i) for i in range(n_tokens - 4))]
    writer.add_token_list(["<unk>", "<s>", "</s>", *letters])
    writer.add_token_scores([0.0] * n_tokens)
    writer.add_token_types([2, 3, 3, *[1] * len(letters)])
    for tensor in GGUFReader(like).tensors:
        rows = np.array(tensor.data)
        if n_tokens != N_TOKENS and tensor.name in ("token_embd.weight", "output.weight"):
            rows = rows[:n_tokens]
        writer.add_tensor(tensor.name, rows, raw_dtype=GGMLQuantizationType(tensor.tensor_type))
    write_out(writer)
    return path


@pytest.mark.parametrize("arch", [[], ["--arch", "qwen2"]])
def test_a_missing_vocabulary_is_told_with_what_to_do(
    rng: np.random.Generator, tmp_path: Path, capsys: pytest.CaptureFixture[str], arch: list[str]
) -> None:
    source, _ = folder(tmp_path / "m", "qwen2", rng)
    (source / "tokenizer.json").write_text("{}")
    command = ["reblock", str(source), "-o", str(tmp_path / "a.gguf"), *arch]
    assert main(command) == 0
    err = capsys.readouterr().err
    assert SAID in err
    assert "tokenizer.json: a model of type 'None' is not read, BPE is" in err
    assert "--like OTHER.gguf" in err
    assert main([*command, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert list(document)[:4] == ["source", "output", "exact", "tensors"]
    assert any(SAID in warning for warning in document["warnings"])


def test_files_that_are_not_read_are_named(rng: np.random.Generator, tmp_path: Path) -> None:
    source, _ = folder(tmp_path / "m", "qwen2", rng)
    (source / "tekken.json").write_bytes(b"")
    result = reblock(source, tmp_path / "a.gguf")
    said = str(result.plan.source.warnings)
    assert "tekken.json lies beside the model, but is not read" in said


def test_a_damaged_vocabulary_is_refused(rng: np.random.Generator, tmp_path: Path) -> None:
    source, _ = folder(tmp_path / "m", "qwen2", rng)
    (source / "tokenizer.model").write_bytes(b"")
    assert "holds no tokens" in refusal(source, tmp_path)


def test_metadata_and_vocabulary_from_another_file(
    rng: np.random.Generator, tmp_path: Path
) -> None:
    source, arch = folder(tmp_path / "m", "qwen2", rng)
    reblock(source, tmp_path / "bare.gguf", arch=arch)
    like = other_file(tmp_path / "like.gguf", tmp_path / "bare.gguf")
    out = tmp_path / "a.gguf"
    result = reblock(source, out, arch=arch, like=like)
    assert result.exact
    assert not any(SAID in warning for warning in result.plan.source.warnings)
    fields = {key: field.contents() for key, field in GGUFReader(out).fields.items()}
    assert fields["general.name"] == "the other file"
    assert fields["general.file_type"] == 2  # Q4_0
    assert "recover.method" not in fields
    with LlamaModel(out, n_ctx=64) as loaded:
        assert loaded.tokenize("AB").tolist()[-2:] == [4, 5]


def test_another_file_without_a_vocabulary_does_not_help(
    rng: np.random.Generator, tmp_path: Path
) -> None:
    source, arch = folder(tmp_path / "m", "qwen2", rng)
    bare = tmp_path / "bare.gguf"
    reblock(source, bare, arch=arch)
    result = reblock(source, tmp_path / "a.gguf", arch=arch, like=bare)
    assert any(SAID in warning for warning in result.plan.source.warnings)


def test_files_of_other_models_are_refused(rng: np.random.Generator, tmp_path: Path) -> None:
    source, arch = folder(tmp_path / "m", "qwen2", rng)
    bare = tmp_path / "bare.gguf"
    reblock(source, bare, arch=arch)
    smaller = other_file(tmp_path / "small.gguf", bare, n_tokens=32)
    llama = other_file(tmp_path / "llama.gguf", bare, arch="llama")
    for number, (like, said) in enumerate(
        (
            (smaller, "is of another model: tensor 'output.weight' is (256, 32)"),
            (llama, "its architecture is 'llama'"),
        )
    ):
        where = tmp_path / str(number)
        where.mkdir()
        assert said in refusal(source, where, arch=arch, like=like)


def test_names_of_its_own_do_not_go_with_metadata_of_llama_cpp(
    rng: np.random.Generator, tmp_path: Path
) -> None:
    source, arch = folder(tmp_path / "m", "qwen2", rng)
    bare = tmp_path / "bare.gguf"
    reblock(source, bare, arch=arch)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "model_type": "qwen2"}))
    text = refusal(source, tmp_path, like=bare)
    assert "--arch 'qwen2' would give them llama.cpp's names" in text


def test_what_the_other_file_has_besides_is_told(rng: np.random.Generator, tmp_path: Path) -> None:
    bias = np.ones(256, np.float16)
    full, arch = folder(tmp_path / "full", "qwen3", rng, **{"self_attn.v_proj": bias})
    reblock(full, tmp_path / "full.gguf", arch=arch)
    source, _ = folder(tmp_path / "m", "qwen3", rng)
    result = reblock(source, tmp_path / "a.gguf", arch=arch, like=tmp_path / "full.gguf")
    assert "the output lacks 'blk.0.attn_v.bias'" in str(result.plan.source.warnings)
