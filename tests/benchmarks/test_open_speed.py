"""Time to open a file with a large vocabulary: 150,000 tokens and 150,000 merges."""

from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from recover.containers.gguf.reader import GGUFModel, Tensor, open_gguf
from tests.hostile.builder import (
    ARRAY,
    FLOAT32,
    INT32,
    STRING,
    array,
    gguf,
    kv,
    scalar,
    string,
    tensor,
)

N_TOKENS = 150_000


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokens = [f"\u0120{i:x}" for i in range(N_TOKENS)]
    merges = [f"{token} {token[::-1]}" for token in tokens]
    entries = [
        kv("tokenizer.ggml.tokens", ARRAY, array(STRING, [string(text) for text in tokens])),
        kv("tokenizer.ggml.merges", ARRAY, array(STRING, [string(text) for text in merges])),
        kv("tokenizer.ggml.scores", ARRAY, array(FLOAT32, [scalar(FLOAT32, 1.5)] * N_TOKENS)),
        kv("tokenizer.ggml.token_type", ARRAY, array(INT32, [scalar(INT32, 1)] * N_TOKENS)),
    ]
    tensors = [tensor(f"blk.{i}.ffn_norm.weight", offset=32 * i) for i in range(300)]
    path = tmp_path_factory.mktemp("open") / "vocabulary.gguf"
    path.write_bytes(gguf(entries, tensors, bytes(32 * 300)))
    return path


def test_open(benchmark: BenchmarkFixture, path: Path) -> None:
    model: GGUFModel[Tensor] = benchmark(open_gguf, path)
    assert len(model.tensors) == 300
    assert len(model.metadata) == 4


def test_read_the_tokens(benchmark: BenchmarkFixture, path: Path) -> None:
    tokens = benchmark(lambda: open_gguf(path).get("tokenizer.ggml.tokens"))
    assert len(tokens) == N_TOKENS
    assert tokens[255] == "\u0120ff"
