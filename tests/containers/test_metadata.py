"""What a merge writes in front of the weights, as gguf-py reads it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader, GGUFValueType, GGUFWriter

import recover
from recover.merge.execute import execute_merge
from recover.merge.plan import plan_merge
from tests.support.gguf_files import Stored, stored, tensor_bytes, write_gguf

FILE_TYPES = {"f32": 0, "f16": 1, "bf16": 32, "q8_0": 7}
"""`enum llama_ftype`."""

NOT_COPIED = ("quantize.imatrix.", "recover.", "split.")

Add = Callable[[GGUFWriter], None]


def merge(inputs: list[Path], output: Path, **options: Any) -> Path:
    execute_merge(plan_merge(inputs, output, **options))
    return output


def stored_entries(path: Path) -> dict[str, bytes]:
    """Key, type and value of every metadata entry, as its bytes in the file, in file order."""
    reader = GGUFReader(path)
    return {
        key: bytes(reader.data[field.offset : field.offset + sum(p.nbytes for p in field.parts)])
        for key, field in reader.fields.items()
        if not key.startswith("GGUF.")
    }


def values(path: Path) -> dict[str, Any]:
    return {
        key: field.contents()
        for key, field in GGUFReader(path).fields.items()
        if not key.startswith("GGUF.")
    }


def without(entries: dict[str, Any], *prefixes: str) -> dict[str, Any]:
    return {key: value for key, value in entries.items() if not key.startswith(prefixes)}


@pytest.fixture
def tensors(rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {
        "token_embd.weight": rng.normal(size=(6, 256)),
        "blk.0.attn_norm.weight": rng.normal(size=24),
        "blk.0.attn_q.weight": rng.normal(size=(4, 256)),
    }


@pytest.fixture
def make(tmp_path: Path, tensors: dict[str, np.ndarray]) -> Callable[..., Path]:
    """Writes a small model of one type."""

    def make(kind: str, add: Add | None = None, name: str = "") -> Path:
        model: dict[str, Stored] = {
            key: stored("F32" if x.ndim == 1 else kind, x) for key, x in tensors.items()
        }
        return write_gguf(tmp_path / f"{name or kind}.gguf", model, add=add)

    return make


def add_every_type(writer: GGUFWriter) -> None:
    """One entry of each type, and arrays of them; the file type in their midst."""
    for number, kind in enumerate(GGUFValueType):
        value: Any = {GGUFValueType.STRING: "ä\n", GGUFValueType.BOOL: True}.get(kind, number)
        if kind != GGUFValueType.ARRAY:
            writer.add_key_value(f"test.{kind.name}", value, kind)
            writer.add_key_value(f"test.{kind.name}s", [value] * 3, GGUFValueType.ARRAY, kind)
        if number == 5:
            writer.add_file_type(17)
    writer.add_float32("test.float", 0.1)
    writer.add_key_value("test.text", "", GGUFValueType.STRING)


@pytest.mark.parametrize("outtype", FILE_TYPES)
def test_only_the_file_type_changes(tiny: list[Path], tmp_path: Path, outtype: str) -> None:
    output = merge(tiny, tmp_path / "merged.gguf", outtype=outtype)
    expected = stored_entries(tiny[0])
    file_type = expected["general.file_type"]
    assert file_type[-4:] == (17).to_bytes(4, "little")
    expected["general.file_type"] = file_type[:-4] + FILE_TYPES[outtype].to_bytes(4, "little")
    kept = without(stored_entries(output), "recover.")
    assert list(kept.items()) == list(expected.items())


def test_gguf_py_reads_the_same_values(tiny: list[Path], tmp_path: Path) -> None:
    output = merge(tiny, tmp_path / "merged.gguf")
    expected = values(tiny[0]) | {"general.file_type": 1}
    assert without(values(output), "recover.") == expected
    before, after = (GGUFReader(path).tensors for path in (tiny[0], output))
    assert [tensor.name for tensor in after] == [tensor.name for tensor in before]
    assert [list(tensor.shape) for tensor in after] == [list(tensor.shape) for tensor in before]


def test_every_type_of_value_is_copied(make: Callable[..., Path], tmp_path: Path) -> None:
    first = make("Q5_K", add_every_type)
    output = merge([first, make("Q4_K")], tmp_path / "merged.gguf")
    before = stored_entries(first)
    after = without(stored_entries(output), "recover.")
    assert list(after) == list(before)
    assert len(before) > 2 * (len(GGUFValueType) - 1)
    del before["general.file_type"], after["general.file_type"]
    assert after == before


def test_provenance(tiny: list[Path], tmp_path: Path) -> None:
    output = merge(tiny, tmp_path / "merged.gguf", method="midpoint")
    own = {key: value for key, value in values(output).items() if key.startswith("recover.")}
    assert own == {
        "recover.version": recover.__version__,
        "recover.method": "midpoint",
        "recover.calibration": "none",
        "recover.source.names": [path.name for path in tiny],
        "recover.source.sizes": [path.stat().st_size for path in tiny],
        "recover.source.types": [
            "Q5_K:20 F32:7 Q6_K:3",
            "Q4_K:20 F32:7 Q6_K:3",
            "Q2_K:13 Q3_K:9 F32:7 Q6_K:1",
        ],
    }
    sizes = GGUFReader(output).fields["recover.source.sizes"]
    assert sizes.types == [GGUFValueType.ARRAY, GGUFValueType.UINT64]


def test_what_an_imatrix_or_an_earlier_merge_left_is_dropped(
    make: Callable[..., Path], tmp_path: Path
) -> None:
    def add(writer: GGUFWriter) -> None:
        writer.add_string("recover.method", "posterior")
        writer.add_string("general.name", "a model")
        writer.add_string("quantize.imatrix.file", "imatrix.dat")
        writer.add_file_type(15)
        writer.add_int32("quantize.imatrix.chunks_count", 128)
        writer.add_array("recover.source.names", ["one.gguf", "two.gguf", "three.gguf"])
        writer.add_string("recover.from_another_version", "?")
        writer.add_quantization_version(2)

    first, second = make("Q5_K", add), make("Q4_K", add)
    written = values(merge([first, second], tmp_path / "merged.gguf", method="linear"))
    assert list(without(written, "recover.").items()) == [
        ("general.architecture", "llama"),
        ("general.name", "a model"),
        ("general.file_type", 1),
        ("general.quantization_version", 2),
    ]
    assert written["recover.method"] == "linear"
    assert written["recover.source.names"] == ["Q5_K.gguf", "Q4_K.gguf"]
    assert "recover.from_another_version" not in written


def test_merging_a_merge_again_changes_nothing_but_the_provenance(
    make: Callable[..., Path], tmp_path: Path
) -> None:
    once = merge([make("Q5_K"), make("Q4_K")], tmp_path / "once.gguf")
    twice = merge([once], tmp_path / "twice.gguf")
    assert without(stored_entries(twice), "recover.") == without(stored_entries(once), "recover.")
    assert values(twice)["recover.source.names"] == ["once.gguf"]
    assert tensor_bytes(twice) == tensor_bytes(once)


@pytest.mark.parametrize("alignment", [32, 64, 1024])
def test_alignment_is_that_of_the_first_input(
    make: Callable[..., Path], tmp_path: Path, alignment: int
) -> None:
    first = make("Q5_K", lambda writer: writer.add_custom_alignment(alignment))
    second = make("Q4_K", lambda writer: writer.add_custom_alignment(256))
    output = merge([first, second], tmp_path / "merged.gguf")
    reader = GGUFReader(output)
    assert reader.alignment == alignment
    assert all(tensor.data_offset % alignment == 0 for tensor in reader.tensors)
    plain = merge([make("Q5_K", name="plain"), second], tmp_path / "plain_merged.gguf")
    assert tensor_bytes(output) == tensor_bytes(plain)


def test_a_missing_file_type_is_added(make: Callable[..., Path], tmp_path: Path) -> None:
    first = make("Q5_K")
    assert "general.file_type" not in values(first)
    output = merge([first, make("Q4_K")], tmp_path / "merged.gguf", outtype="bf16")
    kept = without(values(output), "recover.")
    assert kept == {"general.architecture": "llama", "general.file_type": 32}
    field = GGUFReader(output).fields["general.file_type"]
    assert field.types == [GGUFValueType.UINT32]


def test_parts_of_a_split_file_leave_no_trace(
    make: Callable[..., Path], tensors: dict[str, np.ndarray], tmp_path: Path
) -> None:
    whole = make("Q5_K", lambda writer: writer.add_name("a model"))
    parts = {name: stored("F32" if x.ndim == 1 else "Q5_K", x) for name, x in tensors.items()}
    write_gguf(
        tmp_path / "split.gguf",
        parts,
        add=lambda writer: writer.add_name("a model"),
        split_max_tensors=1,
    )
    part = tmp_path / "split-00001-of-00003.gguf"
    assert values(part)["split.count"] == 3
    second = make("Q4_K")
    from_parts = merge([part, second], tmp_path / "from_parts.gguf")
    from_whole = merge([whole, second], tmp_path / "from_whole.gguf")
    entries = stored_entries(from_parts)
    assert not any(key.startswith("split.") for key in entries)
    source = "recover.source."
    assert without(entries, source) == without(stored_entries(from_whole), source)
    assert tensor_bytes(from_parts) == tensor_bytes(from_whole)
    assert values(from_parts)["recover.source.names"] == [part.name, second.name]
    sizes = [path.stat().st_size for path in sorted(tmp_path.glob("split-*.gguf"))]
    assert values(from_parts)["recover.source.sizes"] == [sum(sizes), second.stat().st_size]
