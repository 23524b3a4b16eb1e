"""Folders of codes that make up for each other's errors: those of another revision are told."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recover.cli import main
from tests.support.compensated_folders import (
    Encode,
    compensated_parts,
    exl2_arrays,
    gptq_arrays,
)
from tests.support.gguf_files import read_weights, squared_error
from tests.support.hf_folders import write_parts
from tests.support.small_llama import small_weights, write_small


def config(n_bits: int, **more: Any) -> dict[str, Any]:
    return {"quant_method": "gptq", "bits": n_bits, "group_size": 128, **more}


KINDS: dict[str, tuple[Encode, dict[str, Any], str]] = {
    "4 bits, act-order": (partial(gptq_arrays, n_bits=4, act_order=True), config(4), "Q6_K"),
    "4 bits beside Q4_K": (partial(gptq_arrays, n_bits=4), config(4), "Q4_K"),
    "3 bits": (partial(gptq_arrays, n_bits=3, symmetric=False), config(3), "Q6_K"),
    "8 bits": (partial(gptq_arrays, n_bits=8), config(8), "Q6_K"),
    "EXL2": (exl2_arrays, {"quant_method": "exl2"}, "Q6_K"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0, 0.08])
def test_a_revision(
    kind: str,
    share: float,
    tmp_path: Path,
    rng: np.random.Generator,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Its embedding and its norms are those of the other, which tell nothing."""
    weights = small_weights(rng)
    encode, settings, beside = KINDS[kind]
    gguf = write_small(tmp_path / "quantized.gguf", weights, beside)
    other = {
        name: w + np.float32(share * w.std()) * rng.standard_normal(w.shape, np.float32)
        if w.ndim == 2 and name.startswith("blk.")
        else w
        for name, w in weights.items()
    }
    arrays, whole = compensated_parts(tmp_path, other, encode)
    folder = write_parts(tmp_path / "folder", arrays, whole | {"quantization_config": settings})
    output = tmp_path / "merged" / "out.gguf"
    output.parent.mkdir()
    rc = main(["merge", str(gguf), str(folder), "-o", str(output)])
    said = capsys.readouterr().err
    if share:
        assert rc == 1
        assert not list(output.parent.iterdir())
        for word in (str(gguf), str(folder), "not quantized from the same original", "'blk.0."):
            assert word in said
    else:
        assert rc == 0, said
        errors = [squared_error(read_weights(each), weights) for each in (output, gguf)]
        assert errors[0] < errors[1]


def test_one_matrix_of_a_revision(
    tmp_path: Path, rng: np.random.Generator, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each is looked at: this one is not among those that tell how files belong together."""
    weights, name = small_weights(rng), "blk.0.ffn_up.weight"
    encode, settings, beside = KINDS["4 bits, act-order"]
    gguf = write_small(tmp_path / "quantized.gguf", weights, beside)
    w = weights[name]
    off = np.float32(0.08 * w.std()) * rng.standard_normal(w.shape, np.float32)
    arrays, whole = compensated_parts(tmp_path, weights | {name: w + off}, encode)
    folder = write_parts(tmp_path / "folder", arrays, whole | {"quantization_config": settings})
    output = tmp_path / "merged" / "out.gguf"
    output.parent.mkdir()
    assert main(["merge", str(gguf), str(folder), "-o", str(output)]) == 1
    assert not list(output.parent.iterdir())
    said = capsys.readouterr().err
    assert f"contradict each other on '{name}'" in said
    assert "not quantized from the same original" in said
