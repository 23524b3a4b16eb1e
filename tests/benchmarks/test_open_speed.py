"""Time to open a file with a large vocabulary: 150,000 tokens and 150,000 merges."""

from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFWriter
from pytest_benchmark.fixture import BenchmarkFixture

from recover.containers.gguf.reader import GGUFModel, Tensor, open_gguf
from tests.support.gguf_files import Stored, write_gguf

N_TOKENS = 150_000


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokens = [f"\u0120{i:x}" for i in range(N_TOKENS)]
    merges = [f"{token} {token[::-1]}" for token in tokens]

    def add(writer: GGUFWriter) -> None:
        writer.add_token_list(tokens)
        writer.add_token_merges(merges)
        writer.add_token_scores([1.5] * N_TOKENS)
        writer.add_token_types([1] * N_TOKENS)

    norms = {f"blk.{i}.ffn_norm.weight": Stored("F32", np.zeros(8, np.float32)) for i in range(300)}
    return write_gguf(tmp_path_factory.mktemp("open") / "vocabulary.gguf", norms, add=add)


def test_open(benchmark: BenchmarkFixture, path: Path) -> None:
    model: GGUFModel[Tensor] = benchmark(open_gguf, path)
    assert len(model.tensors) == 300
    assert len(model.keys_of("tokenizer.ggml.")) == 4


def test_read_the_tokens(benchmark: BenchmarkFixture, path: Path) -> None:
    tokens = benchmark(lambda: open_gguf(path).get("tokenizer.ggml.tokens"))
    assert len(tokens) == N_TOKENS
    assert tokens[255] == "\u0120ff"
