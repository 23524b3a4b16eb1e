"""Q8_0 files that were made from integers, as sources."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recover._text import printable, quoted
from recover.containers.gguf.header import ValueType
from recover.containers.gguf.metadata import derived_metadata
from recover.containers.gguf.reader import open_gguf
from recover.containers.model import StoredTensor
from recover.errors import ReblockError
from recover.inputs.originals.codes import holds, n_bits, pack_codes, read_once, types_for
from recover.inputs.originals.requantized import (
    LONGEST_ROW,
    Blocks,
    Groups,
    SecondHand,
    encoded,
    find_second_hand,
    read_second_hand,
    weights_of,
)
from recover.quants import TensorType, U8Array, type_by_name
from recover.reblock.floats import copied
from recover.reblock.integers import by_rows, flat_reference
from recover.reblock.source import Original, OriginalTensor


def open_second_hand(path: Path, outtype: str | None, *, n_threads: int | None = None) -> Original:
    """Open a GGUF file and look for the integers that its Q8_0 tensors were made from.

    Parameters
    ----------
    path : Path
        A GGUF file.
    outtype : str or None
        Type of the recovered tensors; None: the smallest that holds each exactly.
    n_threads : int, optional
        Default: the cores that this process may use.

    Returns
    -------
    Original
        Other tensors, and those whose origin is not found, are copied.

    Raises
    ------
    GGUFError, ReblockError
        If the file cannot be read, or holds no Q8_0 tensor.
    """
    model = open_gguf(path)
    if all(each.type.name != "Q8_0" for each in model.tensors.values()):
        raise ReblockError(f"{printable(path)}: holds no Q8_0 tensor; there is nothing to undo")
    found = [
        _output_tensors(each, outtype and outtype.upper(), n_threads)
        for each in model.stored.values()
    ]
    chains = {chain for _, chain in found if chain is not None}
    tensors = tuple(tensor for tensor, _ in found)
    entries = [("general.quantization_version", ValueType.UINT32, 2)]
    largest = max(tensors, key=lambda tensor: tensor.n_weights)
    if chains and largest.outtype.file_type is not None:
        entries.append(("general.file_type", ValueType.UINT32, largest.outtype.file_type))
    return Original(
        path=path,
        parts=model.parts,
        metadata=tuple(derived_metadata(model.metadata, ("split.",), entries)),
        tensors=tensors,
        conditions=tuple(_conditions(chains)),
    )


def _conditions(chains: set[str]) -> Iterator[str]:
    if not chains:
        return
    yield "the originals were integers, at most 128 in magnitude, times a BF16 scale per group"
    yield f"their products were rounded to nearest in {' or '.join(sorted(chains))}"
    yield "these were encoded as Q8_0 as llama.cpp does it: encoded again they are the file's bytes"
    yield "the scale of a group is the coarsest that explains its bytes"


def _output_tensors(
    tensor: StoredTensor, outtype: str | None, n_threads: int | None
) -> tuple[OriginalTensor, str | None]:
    """The output tensor, and the chain if its origin was found."""
    found = None
    if tensor.type.name == "Q8_0":
        found = find_second_hand(tensor, n_threads=n_threads)
    if found is None:
        return _kept(tensor, ""), None
    size = found.reach, found.reach, found.group
    wanted = outtype or next(iter(types_for(*size)), "")
    what = (
        f"originally {n_bits(found.reach)}-bit integers times a BF16 scale per {found.group}"
        f" weights, through {found.chain}"
    )
    if not holds(wanted, *size):
        return _kept(tensor, f"{what}; {wanted or 'no type'} does not hold them exactly"), None
    return _recovered(tensor, found, type_by_name(wanted), what), found.chain


def _kept(tensor: StoredTensor, reason: str) -> OriginalTensor:
    """A tensor whose bytes are taken as they are."""
    if tensor.type.name == "Q8_0" and not reason:
        reason = "copied: its bytes do not prove integers times a BF16 scale per group"
        if tensor.dims[0] > LONGEST_ROW:
            reason = f"copied: rows of more than {LONGEST_ROW} weights are not looked at"
    raw = tensor.part(0, tensor.n_weights)
    return replace(copied(tensor.name, tensor.dims, tensor.type.name, raw), reason=reason)


def _recovered(
    tensor: StoredTensor, found: SecondHand, outtype: TensorType, what: str
) -> OriginalTensor:
    blocks, length = Blocks(tensor), tensor.dims[0]

    def groups_of(first: int, last: int) -> tuple[U8Array, Groups]:
        raw = blocks.rows(first, last)
        groups = read_second_hand(raw, found)
        if groups.n_unproven < 0:
            raise ReblockError(f"tensor {quoted(tensor.name)} is not what it was: the file changed")
        return raw, groups

    def encode(first: int, last: int, out: U8Array) -> None:
        _, groups = read_once(first, last, groups_of)
        pack_codes(groups.codes.reshape(-1, length), groups.scales, outtype, out)

    def reference(first: int, last: int) -> NDArray[np.float64]:
        raw, groups = read_once(first, last, groups_of)
        if not np.array_equal(encoded(weights_of(groups, found)), raw.reshape(-1, 34)):
            raise ReblockError(f"tensor {quoted(tensor.name)}: encoded again it is something else")
        products = groups.codes.reshape(-1, found.group) * groups.scales[:, None]
        return products.reshape(-1, length)

    n_weights = blocks.n_rows * length
    share = 1 - found.n_unproven / n_weights
    proof = (
        "every code is proven"
        if not found.n_unproven
        else (
            f"{share:.3%} of the codes are proven; {found.n_unproven} have neighbours that make the"
            " same bytes"
        )
    )
    return OriginalTensor(
        name=tensor.name,
        dims=tensor.dims,
        stored_as="Q8_0",
        outtype=outtype,
        group=found.group,
        exact=not found.n_unproven,
        proven=not found.n_unproven,
        reason=f"{what}: {proof}; encoded again they are the file's bytes",
        encode=by_rows(length, outtype, encode),
        reference=flat_reference(length, reference),
    )
