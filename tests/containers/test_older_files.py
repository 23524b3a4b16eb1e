"""Files of 2023: GGUF version 1 is read, what came before is named with what converts it."""

import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from recover.cli import main
from recover.containers.gguf.header import ValueType, parse_header
from recover.containers.gguf.reader import GGUFModel, open_gguf
from recover.containers.model import StoredTensor
from recover.errors import GGUFError
from tests.hostile import builder, kinds
from tests.support.gguf_files import stored, tensor_bytes

UP, NORM = "blk.0.ffn_up.weight", "blk.0.ffn_norm.weight"
NUMBERS = {
    ValueType.UINT8: 255,
    ValueType.INT16: -2,
    ValueType.UINT32: 1 << 31,
    ValueType.FLOAT32: 1e-5,
    ValueType.BOOL: True,
    ValueType.INT64: -(1 << 40),
    ValueType.FLOAT64: 0.1,
}
TEXTS = ["", "a", "\u00e9" * 300]


class Version:
    """GGUF files of a version, byte by byte; `n` packs counts and lengths."""

    def __init__(self, version: int) -> None:
        self.version = version
        self.n = struct.Struct("<I" if version == 1 else "<Q").pack

    def text(self, text: str) -> bytes:
        return self.n(len(text.encode())) + text.encode()

    def array(self, kind: int, items: Sequence[bytes]) -> bytes:
        return builder.u32(kind) + self.n(len(items)) + b"".join(items)

    def entry(self, key: str, kind: int, raw: bytes) -> bytes:
        return self.text(key) + builder.u32(kind) + raw

    def entries(self) -> list[bytes]:
        texts = [self.text(text) for text in TEXTS]
        floats = [struct.pack("<f", 0.5)] * 7
        nested = [self.array(kinds.STRING, texts), self.array(kinds.FLOAT32, floats)]
        found = [self.entry("general.architecture", kinds.STRING, self.text("llama"))]
        for scalar, number in NUMBERS.items():
            raw = builder.scalar(scalar, number)
            found.append(self.entry(f"test.{scalar.name}", scalar, raw))
        for key, kind, items in (
            ("texts", kinds.STRING, texts),
            ("floats", kinds.FLOAT32, floats),
            ("nested", kinds.ARRAY, nested),
            ("none", kinds.STRING, []),
        ):
            found.append(self.entry(f"test.{key}", kinds.ARRAY, self.array(kind, items)))
        return found

    def file(self, tensors: dict[str, tuple[tuple[int, ...], int, bytes]]) -> bytes:
        entries, table, data = self.entries(), [], b""
        for name, (dims, kind, raw) in tensors.items():
            sizes = b"".join(map(self.n, dims))
            head = self.text(name) + builder.u32(len(dims)) + sizes
            table.append(head + builder.u32(kind) + builder.u64(len(data)))
            data += raw + bytes(-len(raw) % 32)
        counts = self.n(len(table)) + self.n(len(entries))
        head = b"GGUF" + builder.u32(self.version) + counts + b"".join([*entries, *table])
        return head + bytes(-len(head) % 32) + data


def content(kind: str, number: int) -> dict[str, tuple[tuple[int, ...], int, bytes]]:
    x = np.random.default_rng(1).normal(0, 0.02, (64, 256)).astype(np.float32)
    norm = np.linspace(0.5, 1, 256, dtype=np.float32)
    return {
        UP: ((256, 64), number, stored(kind, x).rows.tobytes()),
        NORM: ((256,), kinds.F32, norm.tobytes()),
    }


def write(path: Path, version: int, kind: str, number: int) -> GGUFModel[StoredTensor]:
    path.write_bytes(Version(version).file(content(kind, number)))
    return open_gguf(path)


def test_version_1_is_what_version_3_is(tmp_path: Path) -> None:
    old = write(tmp_path / "1.gguf", 1, "Q8_0", kinds.Q8_0)
    new = write(tmp_path / "3.gguf", 3, "Q8_0", kinds.Q8_0)
    assert (old.header.version, new.header.version) == (1, 3)
    assert list(old.metadata) == list(new.metadata)
    for key, entry in old.metadata.items():
        assert entry.span == new.metadata[key].span, key
        assert entry.value == new.metadata[key].value, key
    assert old.get("test.texts") == TEXTS
    assert old.header.tensors == new.header.tensors
    for name, tensor in old.tensors.items():
        n_weights = tensor.n_weights
        assert tensor.part(0, n_weights).tobytes() == new.tensors[name].part(0, n_weights).tobytes()


def test_merge_and_quantize_of_version_1(tmp_path: Path) -> None:
    fine = {version: str(tmp_path / f"fine-{version}.gguf") for version in (1, 3)}
    coarse = {version: str(tmp_path / f"coarse-{version}.gguf") for version in (1, 3)}
    for version in (1, 3):
        write(Path(fine[version]), version, "Q8_0", kinds.Q8_0)
        write(Path(coarse[version]), version, "Q4_K", kinds.Q4_K)
        out = str(tmp_path / f"out-{version}.gguf")
        assert main(["merge", fine[version], coarse[version], "-o", out]) == 0
        assert main(["quantize", out, "Q4_0", "-o", str(tmp_path / f"q-{version}.gguf")]) == 0
    old, new = open_gguf(tmp_path / "out-1.gguf"), open_gguf(tmp_path / "out-3.gguf")
    assert old.header.version == 3
    assert old.get("test.nested") == [TEXTS, [0.5] * 7]
    assert list(old.metadata) == list(new.metadata)
    for stem in ("out", "q"):
        one, two = (tensor_bytes(tmp_path / f"{stem}-{version}.gguf") for version in (1, 3))
        assert one == two


def test_damaged_files_of_version_1_are_refused() -> None:
    whole = Version(1).file({NORM: ((8,), kinds.F32, bytes(32))})
    head = parse_header(whole).data_start
    for end in range(head):
        with pytest.raises(GGUFError):
            parse_header(whole[:end])
    n_refused = 0
    for position in range(4, head):
        for byte in (0, 255, whole[position] ^ 128):
            changed = whole[:position] + bytes([byte]) + whole[position + 1 :]
            try:
                header = parse_header(changed)
            except GGUFError:
                n_refused += 1
                continue
            for entry in header.metadata.values():
                try:
                    assert entry.span
                    assert entry.value is not None
                except GGUFError:
                    n_refused += 1
    assert n_refused > head / 2


OLDER = {
    "ggml": (0x67676D6C, 32000, ("ggml, without version", "whisper.cpp", "F32 and F16")),
    "ggmf 1": (0x67676D66, 1, ("ggmf version 1", "March 2023", "F32 and F16")),
    "ggjt 1": (0x67676A74, 1, ("ggjt version 1", "March to May 2023", "F32 and F16")),
    "ggjt 2": (0x67676A74, 2, ("ggjt version 2", "May 2023", "unless it has Q4_0")),
    "ggjt 3": (0x67676A74, 3, ("ggjt version 3", "May to August 2023", "--input IN --output OUT")),
}


@pytest.mark.parametrize("case", OLDER)
def test_formats_from_before_gguf_are_named(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    magic, version, words = OLDER[case]
    path = tmp_path / "model.bin"
    path.write_bytes(struct.pack("<II", magic, version) + bytes(100))
    assert main(["inspect", str(path)]) == 1
    message = capsys.readouterr().err
    assert "not a GGUF file" in message
    assert "convert_llama_ggml_to_gguf.py" in message
    assert [word for word in words if word not in message] == []


def test_other_versions_of_ggjt_are_not_known(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(struct.pack("<II", 0x67676A74, 4) + bytes(100))
    with pytest.raises(GGUFError, match="it begins with b'tjgg' instead of b'GGUF'"):
        open_gguf(path)


PIECES = {
    "m.gguf.part1of2": "cat m.gguf.part{1..2}of2 > m.gguf",
    "m.gguf.part02of12": "cat m.gguf.part{01..12}of12 > m.gguf",
    "m.gguf-part1of2": "cat m.gguf-part{1..2}of2 > m.gguf",
    "m.Q8_0.gguf-split-a": "cat m.Q8_0.gguf-split-* > m.Q8_0.gguf",
    "m.gguf-split-ab": "cat m.gguf-split-* > m.gguf",
    "m.gguf.part-b": "cat m.gguf.part-* > m.gguf",
    "a b.gguf.part1of3": "cat 'a b.gguf'.part{1..3}of3 > 'a b.gguf'",
}


@pytest.mark.parametrize("name", PIECES)
@pytest.mark.parametrize("is_first", [True, False], ids=["first", "further"])
def test_pieces_are_to_be_joined(
    name: str, is_first: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = Version(3).file(content("Q8_0", kinds.Q8_0))
    path, cut = tmp_path / name, len(whole) // 2
    path.write_bytes(whole[:cut] if is_first else whole[cut:])
    assert main(["merge", str(path), "-o", str(tmp_path / "out.gguf")]) == 1
    assert (
        f"is one of the pieces that a file was cut into, and no piece can be read alone; join \
them first: {PIECES[name]}\n"
        in capsys.readouterr().err
    )


def test_a_whole_file_may_have_any_name(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf.part1of1"
    assert write(path, 3, "Q8_0", kinds.Q8_0).n_weights == 64 * 256 + 256
    with pytest.raises(GGUFError, match="there is no such file"):
        open_gguf(tmp_path / "m.gguf.part1of2")
