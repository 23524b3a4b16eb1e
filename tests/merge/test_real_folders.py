"""Folders that real programs wrote, merged with files that llama.cpp made of the same model.

With ``-s`` the perplexities of all of them are printed.
"""

from functools import partial
from pathlib import Path

import numpy as np
import pytest

import recover
from recover.containers.huggingface.reader import open_folder
from recover.containers.huggingface.tensors import FloatTensor, QuantizedTensor
from recover.evaluate.divergence import Divergence
from recover.quants import Stated
from tests.golden.make_quantized_folders import MAKERS, PACKAGES
from tests.support.gguf_files import F32Array, read_weights, squared_error
from tests.support.hf_folders import write_folder
from tests.support.interpreters import interpreter_with, run_script
from tests.support.merging import merge
from tests.support.models import ROOT, SHARED
from tests.support.text import write_model

pytestmark = [pytest.mark.slow, pytest.mark.inference]

SCRIPT = ROOT / "tests" / "golden" / "make_quantized_folders.py"
BESIDE = {
    **dict.fromkeys(("int8", "FP8_DYNAMIC", "torchao_fp8", "qfloat8", "qint8"), "Q6_K"),
    **dict.fromkeys(("mlx8", "torchao_int8"), "Q8_0"),
}
N_CHUNKS = 8

measure_divergence = partial(recover.measure_divergence, n_threads=1)


@pytest.fixture(scope="module")
def source(llama_29m: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in bfloat16 that the programs quantize."""
    return write_folder(llama_29m, tmp_path_factory.mktemp("source") / "model", None)


@pytest.fixture(scope="module")
def truth(llama_29m: Path) -> dict[str, F32Array]:
    return read_weights(llama_29m)


def decoded(folder: Path) -> dict[str, F32Array]:
    """What a folder alone says of the weights."""
    tensors = open_folder(folder).tensors
    return {
        name: tensor.read(0, tensor.n_weights).reshape(tensor.dims[::-1])
        for name, tensor in tensors.items()
    }


def n_outside(folder: Path, truth: dict[str, F32Array]) -> dict[str, int]:
    """By name of a quantized tensor, how many weights lie outside what it states."""
    found = {}
    for name, tensor in open_folder(folder).tensors.items():
        if isinstance(tensor, QuantizedTensor) and tensor.has_cells:
            stated = np.empty((4, tensor.n_weights), np.float32)
            tensor.intervals(0, tensor.n_weights, Stated(*stated))
            w = truth[name].reshape(-1)
            found[name] = int(np.count_nonzero((w < stated[1]) | (w > stated[2])))
        elif isinstance(tensor, FloatTensor):
            np.testing.assert_allclose(
                tensor.read(0, tensor.n_weights), truth[name].reshape(-1), 2**-11, 2**-25
            )
    return found


@pytest.mark.parametrize("name", MAKERS)
def test_a_merge_comes_nearer_the_truth(
    name: str,
    source: Path,
    truth: dict[str, F32Array],
    llama_29m: Path,
    quantized_29m: dict[str, Path],
    tmp_path: Path,
) -> None:
    python = interpreter_with(PACKAGES[MAKERS[name][0]])
    folder = tmp_path / name
    run_script(python, SCRIPT, source, folder, name)
    outside = n_outside(folder, truth)
    assert len(outside) >= 8 * 7
    assert not any(outside.values()), outside

    gguf, output = quantized_29m[BESIDE.get(name, "Q4_K_M")], tmp_path / "merged.gguf"
    merge([gguf, folder], output)
    alone = decoded(folder)
    assert {key: w.shape for key, w in alone.items()} == {k: w.shape for k, w in truth.items()}
    errors = [squared_error(each, truth) for each in (read_weights(gguf), alone)]
    assert squared_error(read_weights(output), truth) < 0.85 * min(errors)

    plain = write_model(tmp_path / "alone.gguf", llama_29m, alone)
    merged, *inputs = measure_divergence(
        [output, gguf, plain], llama_29m, SHARED / "eval.txt", n_chunks=N_CHUNKS
    )
    said = [f"\n{name}: perplexity of the truth {merged.ppl_truth:.4f}"]
    for label, each in zip(("merged", gguf.name, "folder"), (merged, *inputs), strict=True):
        low, high = each.mean_kld_ci99
        said.append(
            f"  {label:28} {each.ppl:.4f}, logarithm over the truth's"
            f" {each.ln_ppl_ratio:+.5f} +- {deviation_by_chunk(each):.5f},"
            f" mean divergence {each.mean_kld:.3g} ({low:.3g} to {high:.3g})"
        )
    print("\n".join(said))  # noqa: T201
    for each in inputs:
        assert each.paired is not None
        assert each.paired.mean_kld_difference_ci99_by_chunk is not None
        assert each.paired.mean_kld_difference_ci99_by_chunk[0] > 0
        by_chance = 3 * deviation_by_chunk(merged, each)
        assert abs(merged.ln_ppl_ratio) < abs(each.ln_ppl_ratio) + by_chance


def deviation_by_chunk(one: Divergence, other: Divergence | None = None) -> float:
    """Standard error of the logarithm of perplexity over another's, or the truth's.

    It is that of a mean of chunks. Where it is larger than the logarithms, perplexity is no measure
    of which is better: of a text that the truth writes itself, the mean of the logarithm is the
    divergence, and many more tokens would be needed to tell such means apart.
    """
    nll = one.per_token.nll_truth if other is None else other.per_token.nll
    _, starts = np.unique(one.per_token.chunk, return_index=True)
    means = [part.mean() for part in np.split(one.per_token.nll - nll, starts[1:])]
    return float(np.std(means, ddof=1) / len(means) ** 0.5)
