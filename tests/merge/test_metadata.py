"""Inputs whose weights belong together and whose metadata do not: what differs is named."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFWriter
from numpy.typing import NDArray

from recover.inspect.report import inspect_files
from recover.merge.plan import plan_merge
from tests.support.gguf_files import stored, write_gguf

F32Array = NDArray[np.float32]
Add = Callable[[GGUFWriter], None]

TOKENS = [f"t{i}" for i in range(50)]
BASE, LIST = "llama.rope.freq_base", "tokenizer.ggml.tokens"


def usual(writer: GGUFWriter) -> None:
    writer.add_rope_freq_base(10_000.0)
    writer.add_head_count(4)
    writer.add_token_list(TOKENS)
    writer.add_quantization_version(2)
    writer.add_name("one")


def other_base(writer: GGUFWriter) -> None:
    usual(writer)
    writer.kv_data[0][BASE].value = 500_000.0


def other_order(writer: GGUFWriter) -> None:
    usual(writer)
    writer.kv_data[0][LIST].value = [TOKENS[1], TOKENS[0], *TOKENS[2:]]


def more_tokens(writer: GGUFWriter) -> None:
    usual(writer)
    writer.kv_data[0][LIST].value = [*TOKENS, "more"]


def other_name(writer: GGUFWriter) -> None:
    usual(writer)
    writer.kv_data[0]["general.name"].value = "two"
    writer.add_uint32("llama.context_length", 256)  # the other one has no such key


def other_formats(writer: GGUFWriter) -> None:
    usual(writer)
    writer.kv_data[0]["general.quantization_version"].value = 1


def pair(tmp_path: Path, x: F32Array, add: Add) -> list[Path]:
    name = "blk.0.ffn_up.weight"
    return [
        write_gguf(tmp_path / "one.gguf", {name: stored("Q5_K", x)}, add=usual),
        write_gguf(tmp_path / "two.gguf", {name: stored("Q4_K", x)}, add=add),
    ]


@pytest.mark.parametrize(
    ("add", "told"),
    [
        (other_base, f"'{BASE}' (500000, not 10000)"),
        (other_order, f"'{LIST}' (2 of 50 entries)"),
        (more_tokens, f"'{LIST}' (51 entries, not 50)"),
        (other_formats, "stored in version 1 of ggml's formats; they are decoded as version 2"),
    ],
)
def test_what_differs_is_named(add: Add, told: str, tmp_path: Path, real_rows: F32Array) -> None:
    paths = pair(tmp_path, real_rows[:16, :256], add)
    lines = [text for text in plan_merge(paths, tmp_path / "out.gguf").warnings if told in text]
    assert len(lines) == 1
    assert lines[0].startswith(str(paths[1]))
    assert lines[0] in inspect_files(paths, n_threads=1).findings()


@pytest.mark.parametrize("add", [usual, other_name])
def test_nothing_is_said_of_names_and_keys_of_one_alone(
    add: Add, tmp_path: Path, real_rows: F32Array
) -> None:
    paths = pair(tmp_path, real_rows[:16, :256], add)
    assert plan_merge(paths, tmp_path / "out.gguf").warnings == ()
