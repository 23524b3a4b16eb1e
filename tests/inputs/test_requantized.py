"""The original integers of naive Q8_0 files, which libggml makes here."""

import time
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter
from numpy.typing import NDArray

from recover.cli import main
from recover.containers.model import ArrayTensor
from recover.errors import ReblockError
from recover.inputs.originals._requantized import is_naive, read_groups, tables
from recover.inputs.originals.codes import rounded as our_rounded
from recover.inputs.originals.requantized import CHAINS, SecondHand, encoded, find_second_hand
from recover.quants import type_by_name
from recover.reblock.execute import execute_reblock
from recover.reblock.plan import plan_reblock
from recover.reblock.second_hand import open_second_hand
from tests.naive.grids import naive_q8_0, rounded
from tests.oracle import libggml
from tests.oracle.weights import gguf_weights, sentence_encoder_weights
from tests.support.gguf_files import write_out
from tests.support.integers import F64, Generator, original

U8 = NDArray[np.uint8]
Q8_0 = GGMLQuantizationType.Q8_0
chains = pytest.mark.parametrize("chain", CHAINS)
CODES_RIGHT = {"F32": 1.0, "F16": 0.9997, "BF16": 0.994}


def naive(codes: F64, scales: F64, chain: str) -> U8:
    """The usual way to Q8_0."""
    weights = rounded(codes * scales, chain).astype(np.float32)
    return libggml.quantize(Q8_0, weights.reshape(len(codes), -1))


def tensor_of(raw: U8, row_length: int) -> ArrayTensor:
    dims = row_length, raw.size // 34 * 32 // row_length
    return ArrayTensor("t", dims, type_by_name("Q8_0"), raw.reshape(-1))


def recovered(raw: U8, found: SecondHand) -> tuple[NDArray[np.int16], F64]:
    n = raw.size // 34 * 32
    codes, scales = np.empty(n, np.int16), np.empty(n // found.group)
    chain = CHAINS.index(found.chain)
    assert read_groups(raw, chain, found.max_code, 0.0, tables(), codes, scales) == found.n_unproven
    return codes, scales


@chains
@pytest.mark.parametrize("group", [128, 768, 6144])
def test_int8_comes_back(rng: Generator, chain: str, group: int) -> None:
    codes, scales = original(rng, 60, 6144, group, 127)
    raw = naive(codes, scales, chain)
    found = find_second_hand(tensor_of(raw, 6144))
    assert found is not None
    assert (found.chain, found.group) == (chain, group)
    found_codes, found_scales = recovered(raw, found)
    np.testing.assert_array_equal(found_scales, scales.reshape(-1))
    right = found_codes == codes.reshape(-1)
    assert right.mean() >= CODES_RIGHT[chain]
    # Only codes that are called unproven may be wrong.
    assert np.count_nonzero(~right) <= found.n_unproven
    assert (found.n_unproven == 0) == (chain == "F32")
    # The certificate, by ggml.
    products = found_codes.reshape(codes.shape) * found_scales.reshape(scales.shape)
    np.testing.assert_array_equal(naive(products, np.ones(1), chain), raw)


@chains
def test_int4_comes_back(rng: Generator, chain: str) -> None:
    codes, scales = original(rng, 200, 1024, 32, 7)
    raw = naive(codes, scales, chain)
    found = find_second_hand(tensor_of(raw, 1024))
    assert found is not None
    assert (found.group, found.reach, found.n_unproven) == (32, 8, 0)
    found_codes, _ = recovered(raw, found)
    np.testing.assert_array_equal(found_codes, codes.reshape(-1))


def test_continuous_weights_have_no_original(llama_29m: Path) -> None:
    weights = [*sentence_encoder_weights()]
    assert weights, "the test extra is not installed: the sentence encoder is missing"
    n_rows = 0
    for x in [*weights, *gguf_weights(llama_29m)]:
        if x.shape[1] % 32 == 0:
            n_rows += len(x[:400])
            assert find_second_hand(tensor_of(libggml.quantize(Q8_0, x[:400]), x.shape[1])) is None
    assert n_rows > 30_000


@pytest.mark.parametrize("scale", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("per_row", [False, True])
@pytest.mark.parametrize("largest", [1, 2, 7])
def test_few_magnitudes_prove_nothing(
    rng: Generator, scale: str, per_row: bool, largest: int
) -> None:
    """Integers of many sizes, times a scale on one grid or another, explain such weights."""
    if scale == "BF16" and largest > 2:
        return  # these may be proven
    for _ in range(10):
        codes = rng.integers(-largest, largest + 1, (200, 1024)).astype(np.float64)
        scales = 0.02 * np.exp(rng.standard_normal((200 if per_row else 1, 1)))
        scales = rounded(scales, scale).reshape(scales.shape)
        weights = (codes * scales).astype(np.float32)
        assert find_second_hand(tensor_of(libggml.quantize(Q8_0, weights), 1024)) is None


@pytest.mark.parametrize("n_large", [0, 20])
def test_weights_near_the_smallest_number_of_f16_take_no_longer(
    rng: Generator, n_large: int
) -> None:
    """Thousands of scales explain their blocks; rows of other sizes tell at once."""
    sizes = np.where(np.arange(40) < 40 - n_large, 3e-6, 0.02)[:, None]
    x = rng.standard_normal((40, 512)).astype(np.float32)
    assert find_second_hand(tensor_of(libggml.quantize(Q8_0, x), 512)) is None  # compiles
    raw = libggml.quantize(Q8_0, (x * sizes).astype(np.float32))
    before = time.process_time()
    assert find_second_hand(tensor_of(raw, 512)) is None
    assert time.process_time() - before < 1  # seconds of a processor; minutes if all are tried


@pytest.mark.parametrize("hard", ["negative scale", "lowest code", "all zeros", "no 127", "noise"])
def test_what_the_naive_way_does_not_make(rng: Generator, hard: str) -> None:
    codes, scales = original(rng, 40, 512, 128, 127)
    raw = naive(codes, scales, "F32").reshape(-1, 34)
    if hard == "negative scale":
        raw[0, 1] |= 0x80
    elif hard == "lowest code":
        raw[0, 2] = 0x80
    elif hard == "all zeros":
        raw[:] = 0
    elif hard == "no 127":
        raw[0, 2:] = 1
    else:  # the marks are there, but not all of these codes are made in a block of small ones
        block = np.abs(codes).reshape(-1, 32).max(1).argmin()
        raw[block, 2:] = [127, *range(1, 32)]
    assert is_naive(raw.reshape(-1)) == (hard in ("all zeros", "noise"))
    assert find_second_hand(tensor_of(raw.reshape(-1), 512)) is None


def test_groups_and_blocks_of_zeros(rng: Generator) -> None:
    codes, scales = original(rng, 40, 512, 128, 127)
    codes[3], codes[5, 1], codes[7, :, :32], codes[39, 3, 64:] = 0, 0, 0, 0
    raw = naive(codes, scales, "F32")
    found = find_second_hand(tensor_of(raw, 512))
    assert found is not None
    np.testing.assert_array_equal(recovered(raw, found)[0], codes.reshape(-1))


@chains
def test_our_numpy_twins_are_right(rng: Generator, chain: str) -> None:
    x = rng.standard_normal(32 * 40) * np.exp(3 * rng.standard_normal(32 * 40))
    x[:32] = 0
    x = x.astype(np.float32).astype(np.float64)
    weights = our_rounded(x, chain)
    np.testing.assert_array_equal(weights, rounded(x, chain))
    blocks = encoded(weights)
    scales, codes = naive_q8_0(weights)
    np.testing.assert_array_equal(blocks[:, :2].copy().view("<f2")[:, 0], scales)
    np.testing.assert_array_equal(blocks[:, 2:].view(np.int8).reshape(-1), codes)
    raw = libggml.quantize(Q8_0, weights.astype(np.float32).reshape(-1, 32))
    np.testing.assert_array_equal(blocks.reshape(-1), raw)


def write(path: Path, tensors: dict[str, tuple[U8, int]]) -> Path:
    writer = GGUFWriter(path, "llama")
    for name, (raw, n_rows) in tensors.items():
        writer.add_tensor(name, raw.reshape(n_rows, -1), raw_dtype=Q8_0)
    writer.add_tensor("norm", np.ones(64, np.float32))
    write_out(writer)
    return path


def test_from_the_command_line(rng: Generator, tmp_path: Path) -> None:
    products, tensors = {}, {}
    for name, (group, largest) in {"eight": (256, 127), "five": (64, 15), "four": (32, 7)}.items():
        codes, scales = original(rng, 40, 512, group, largest)
        products[name] = (codes * scales).reshape(40, 512)
        tensors[name] = naive(codes, scales, "F32"), 40
    other = libggml.quantize(Q8_0, rng.standard_normal((40, 512)).astype(np.float32))
    path = write(tmp_path / "model.gguf", {**tensors, "other": (other, 40)})
    output = tmp_path / "out.gguf"
    assert main(["reblock", str(path), "-o", str(output), "--second-hand", "--quiet"]) == 0
    found = {tensor.name: tensor for tensor in GGUFReader(output).tensors}
    kinds = {name: tensor.tensor_type.name for name, tensor in found.items()}
    expected = {"eight": "Q8_0", "five": "Q5_0", "four": "Q4_0", "other": "Q8_0", "norm": "F32"}
    assert kinds == expected
    for name, product in products.items():
        decoded = gguf.quants.dequantize(found[name].data, found[name].tensor_type)
        np.testing.assert_array_equal(decoded.astype(np.float64), product)
    np.testing.assert_array_equal(np.array(found["other"].data).reshape(-1), other)


def test_the_claim_names_its_conditions(rng: Generator, tmp_path: Path) -> None:
    codes, scales = original(rng, 40, 512, 256, 127)
    path = write(tmp_path / "model.gguf", {"w": (naive(codes, scales, "BF16"), 40)})
    source = open_second_hand(path, None)
    tensor = source.tensors[0]
    assert "BF16 scale per 256 weights, through BF16" in tensor.reason
    assert "encoded again they are the file's bytes" in tensor.reason
    assert not tensor.exact
    assert "of the codes are proven" in tensor.reason
    assert any("rounded to nearest in BF16" in condition for condition in source.conditions)
    result = execute_reblock(plan_reblock(source, tmp_path / "out.gguf"))
    assert result.tensors[0].verified
    assert result.tensors[0].n_different == 0
    assert not result.exact
    refused = open_second_hand(path, "q4_0").tensors[0]
    assert "Q4_0 does not hold them" in refused.reason


def test_files_without_q8_0_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ReblockError, match="holds no Q8_0 tensor"):
        open_second_hand(write(tmp_path / "model.gguf", {}), None)
