"""Files of the first generation of trellis types are told by the other inputs, or by one tensor."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from recover.containers.gguf.reader import open_gguf
from recover.inputs.generations import with_generations
from recover.inputs.recipes import make, recipe_of
from recover.merge.execute import execute_merge
from recover.merge.plan import plan_merge
from tests.hostile.builder import kv, scalar
from tests.hostile.kinds import STRING
from tests.support.fork_files import Part, file_of, rows_of

F16 = 1


def part_of(name: str, type_name: str, chosen: Sequence[int] = range(6)) -> Part:
    rows = rows_of(type_name)
    assert rows.kind.type_id is not None
    raw = rows.raw[list(chosen)]
    return Part(name, (rows.original.shape[1], len(raw)), rows.kind.type_id, raw.tobytes())


def original_of(name: str, type_name: str) -> Part:
    """What the rows of a type were made of, as F16."""
    x = rows_of(type_name).original
    return Part(name, x.shape[::-1], F16, x.astype(np.float16).tobytes())


def write(path: Path, *parts: Part) -> Path:
    architecture = kv("general.architecture", STRING, scalar(STRING, "llama"))
    path.write_bytes(file_of(parts, [architecture]))
    return path


@pytest.mark.parametrize("name", ["IQ2_KT", "IQ3_KT"])
@pytest.mark.parametrize("generation", ["", "_V1"])
def test_another_input_tells(name: str, generation: str, tmp_path: Path) -> None:
    stored = f"{name}{generation}"
    file = write(tmp_path / "kt.gguf", part_of("w", stored))
    known = write(tmp_path / "f16.gguf", original_of("w", stored))
    models, warnings = [open_gguf(file), open_gguf(known)], list[str]()
    assert models[0].tensors["w"].type.name == name
    found, _ = with_generations(models, ["w"], warnings)
    assert found.tensors["w"].type.name == stored
    assert len(warnings) == (generation != "")
    assert all("kt.gguf" in line and "June 2025" in line for line in warnings)
    again = make(recipe_of(found.tensors["w"]), models[0])
    assert again.type.name == stored


@pytest.mark.parametrize("generation", ["", "_V1"])
def test_two_files_of_trellis_codes_tell_each_other(generation: str, tmp_path: Path) -> None:
    """The originals of the golden rows of the first generation are the same."""
    names = ("IQ2_KT_V1", "IQ3_KT_V1") if generation else ("IQ4_KT", "IQ3_KT_V1")
    files = [write(tmp_path / f"{name}.gguf", part_of("w", name)) for name in names]
    found = with_generations([open_gguf(each) for each in files], ["w"], [])
    assert [model.tensors["w"].type.name for model in found] == [*names]


def test_one_tensor_tells_of_all(tmp_path: Path) -> None:
    """Rows of IQ4_KT have longer headers in the first generation."""
    file = write(tmp_path / "a.gguf", part_of("a", "IQ2_KT_V1"), part_of("b", "IQ4_KT_V1"))
    kinds = [each.type.name for each in open_gguf(file).tensors.values()]
    assert kinds == ["IQ2_KT_V1", "IQ4_KT_V1"]
    file = write(tmp_path / "b.gguf", part_of("a", "IQ2_KT"), part_of("b", "IQ4_KT"))
    assert [each.type.name for each in open_gguf(file).tensors.values()] == ["IQ2_KT", "IQ4_KT"]


def test_a_merge_takes_the_right_one(tmp_path: Path) -> None:
    names = ("IQ2_KT_V1", "IQ4_KT_V1")
    # Without superblocks of zeros, of which the first generation has the average; and so many that
    # their headers are not lost in the padding.
    ordinary = (0, 3) * 4
    files = [write(tmp_path / f"{name}.gguf", part_of("w", name, ordinary)) for name in names]
    out = tmp_path / "out.gguf"
    plan = plan_merge(files, out)
    assert any("June 2025" in line for line in plan.warnings)
    execute_merge(plan)
    x = rows_of("IQ4_KT_V1").original[list(ordinary)].reshape(-1)
    merged = open_gguf(out).tensors["w"].read(0, x.size)
    alone = [open_gguf(each).tensors["w"].read(0, x.size) for each in files]
    assert np.square(merged - x).sum() < 1.05 * np.square(alone[1] - x).sum()
