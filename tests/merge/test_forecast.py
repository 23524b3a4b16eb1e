"""What a merge is expected to read, to write, to take and to gain."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from recover.containers.gguf.reader import open_gguf
from recover.errors import OutputError
from recover.merge.execute import execute_merge
from recover.merge.forecast import check_space, forecast, free_space
from recover.merge.plan import MergePlan, plan_merge
from recover.quants import TILE
from tests.support.gguf_files import Stored, stored, write_gguf


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Models with tensors of many tiles, which differ in size, and many small ones."""
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("large")
    weights = {
        f"blk.{i}.ffn_up.weight": (i + 1) * rng.standard_normal((3000, 1024)) for i in (0, 1)
    }
    weights |= {f"blk.{i}.attn_q.weight": rng.standard_normal((64, 256)) for i in range(40)}
    weights["output_norm.weight"] = np.ones((1, 256))
    paths = []
    for kind in ("Q5_K", "Q4_K", "Q2_K"):
        tensors: dict[str, Stored] = {
            name: stored("F32" if "norm" in name else kind, each.astype(np.float32))
            for name, each in weights.items()
        }
        paths.append(write_gguf(folder / f"{kind}.gguf", tensors))
    return paths


@pytest.mark.parametrize("method", ["posterior", "linear"])
def test_of_large_and_small_tensors(method: str, large: list[Path], tmp_path: Path) -> None:
    plan = plan_merge(large, tmp_path / "out.gguf", method=method, uncertainty=tmp_path / "s.gguf")
    expected = forecast(plan, n_threads=2)
    assert not list(tmp_path.iterdir())
    models = [open_gguf(path).tensors for path in large]
    matrices = sum(t.n_bytes for each in models for name, t in each.items() if "norm" not in name)
    assert matrices <= expected.n_read <= matrices + 3 * 4 * 256
    result = execute_merge(plan, n_threads=2)
    assert expected.n_written == sum(path.stat().st_size for path in tmp_path.iterdir())
    assert expected.mse_ratio == pytest.approx(result.expected_mse_ratio, rel=0.02)
    assert expected.n_threads == 2
    assert 0 < expected.seconds < 60
    assert forecast(plan, n_threads=4).seconds == pytest.approx(expected.seconds / 2, rel=0.9)


def test_all_tiles_of_a_small_model(tiny: list[Path], tmp_path: Path) -> None:
    plan = plan_merge(tiny, tmp_path / "out.gguf")
    expected = forecast(plan)
    assert expected.mse_ratio == pytest.approx(execute_merge(plan).expected_mse_ratio, rel=0.02)


def test_nothing_to_estimate(tiny: list[Path], tmp_path: Path) -> None:
    plan = plan_merge([tiny[0].with_name("tiny-llama-3m-bf16.gguf")], tmp_path / "out.gguf")
    expected = forecast(plan)
    assert expected.mse_ratio is None
    assert expected.n_read > TILE


def space(plan: MergePlan, monkeypatch: pytest.MonkeyPatch, n_free: int) -> None:
    usage = shutil.disk_usage(plan.output.parent)._replace(free=n_free)
    monkeypatch.setattr(shutil, "disk_usage", lambda _folder: usage)
    check_space(free_space(plan))


def test_space(tiny: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_merge(tiny, tmp_path / "out.gguf", uncertainty=tmp_path / "second.gguf")
    needed = sum(file.n_bytes for file in plan.files)
    space(plan, monkeypatch, needed)
    with pytest.raises(OutputError, match=f"has {needed - 1:,} bytes free, and {needed:,} are to"):
        space(plan, monkeypatch, needed - 1)
