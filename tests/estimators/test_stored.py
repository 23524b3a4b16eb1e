"""What files say of superblocks, asked for by an estimator of another package."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from recover import PlanError
from recover.cli import main
from recover.containers.model import ArrayTensor
from recover.estimators import Request, Tally
from recover.estimators.tile import TileEstimator
from recover.evidence.buffer import Evidence, Source, take_one
from recover.evidence.stored import StoredTile
from recover.quants import F32Array, quantize, type_by_name
from tests.support import packages
from tests.support.models import TINY
from tests.support.stated_intervals import round_columns


def tensor(name: str, x: F32Array) -> ArrayTensor:
    kind = type_by_name(name)
    return ArrayTensor("weight", (x.size,), kind, quantize(x, kind))


def weights(n_rows: int = 4) -> F32Array:
    return np.random.default_rng(5).standard_t(5, (n_rows, 512)).astype(np.float32)


class OfSuperblocks:
    """Weighs inputs by one over the square of d times the mean scale code of the superblock."""

    SUMMARY = "weighed by superblocks"
    asked: list[tuple[int, bool]]

    def __init__(self) -> None:
        self.asked = []

    def estimate(self, evidence: Evidence, out: F32Array, tally: Tally, request: Request) -> None:
        value, total, weight = np.empty_like(out), np.zeros(out.size), np.zeros(out.size)
        for k in range(tally.n_inputs):
            blocks = request.stored.sub_blocks(k)
            self.asked.append((out.size, blocks is not None))
            if blocks is None:
                scale = np.repeat(evidence.scale[k], 16)
            else:
                means = blocks.d * np.abs(blocks.scale_codes.astype(np.float32)).mean(axis=1)
                scale = np.repeat(means, 256)
            weighs = 1 / (np.square(scale, dtype=np.float64) + 1e-20)
            take_one(evidence, k, value)
            total += weighs * value
            weight += weighs
            tally.alone[k] += 1 / weighs.mean()
        out[:] = total / weight
        tally.variance += 1 / weight.mean()


class Silent:
    """Fills no tally."""

    @staticmethod
    def estimate(evidence: Evidence, out: F32Array, tally: Tally, request: Request) -> None:
        take_one(evidence, 0, out)


method, silent = OfSuperblocks(), Silent()


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, bool]]]:
    """The method is installed; how many weights it saw, and whether they have sub-blocks."""
    method.asked.clear()
    with packages.estimators(monkeypatch, superblocks=f"{__name__}:method"):
        yield method.asked


def test_an_estimator_over_superblocks_goes_through_merge_inspect_and_evaluate(
    asked: list[tuple[int, bool]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [str(tmp_path / f"{name}.gguf") for name in ("Q4_K", "Q3_K", "Q8_0")]
    for path in paths:
        assert main(["quantize", str(TINY), Path(path).stem, "-o", path, "-q"]) == 0
    output = str(tmp_path / "merged.gguf")
    assert main(["merge", *paths, "-o", output, "--method", "superblocks", "-q"]) == 0
    assert {has for _, has in asked} == {True, False}
    assert {n for n, _ in asked if n % 256} == set()
    capsys.readouterr()
    assert main(["evaluate", output, *paths, "--truth", str(TINY), "--json"]) == 0
    merged, *others = json.loads(capsys.readouterr().out)["models"]
    assert merged["total"]["mse"] < max(each["total"]["mse"] for each in others)


def test_sub_blocks_are_those_of_the_tile_in_the_order_of_the_evidence(
    asked: list[tuple[int, bool]],
) -> None:
    x = weights()
    inputs = [tensor(name, x) for name in ("Q8_0", "Q2_K", "Q6_K")]
    estimator = TileEstimator([Source(each.type) for each in inputs], "superblocks")
    out = np.empty(512, np.float32)
    estimator.estimate(inputs, 512, 1024, out)
    assert asked[-3:] == [(512, False), (512, True), (512, True)]
    expected = np.zeros((2, 512))
    for each in inputs:
        value = each.read(512, 1024)
        if each.type.name == "Q8_0":
            d = each.part(512, 1024).reshape(-1, 34)[:, :2].copy().view("<f2")
            scale = np.repeat(d[:, 0].astype(np.float64), 32)
        else:
            found = StoredTile([each], 512, 1024).sub_blocks(0)
            assert found is not None
            means = found.d * np.abs(found.scale_codes.astype(np.float32)).mean(axis=1)
            scale = np.repeat(means.astype(np.float64), 256)
        expected += 1 / (scale**2 + 1e-20) * np.array([value, np.ones(512)])
    np.testing.assert_allclose(out, expected[0] / expected[1], rtol=1e-5)


def test_small_tensors_in_one_tile_have_their_own_sub_blocks(
    asked: list[tuple[int, bool]],
) -> None:
    x = weights()
    inputs = [tensor(name, x) for name in ("Q4_K", "Q2_K")]
    estimator = TileEstimator([Source(each.type) for each in inputs], "superblocks")
    alone, together = np.empty((2, x.size), np.float32)
    estimator.estimate(inputs, 0, x.size, alone)
    estimator.estimate_each(inputs, 0, x.size, 4, together)
    np.testing.assert_array_equal(alone, together)
    assert asked[-1] == (x.size // 4, True)


def test_methods_without_errors_to_expect_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = type_by_name("Q4_K"), type_by_name("Q2_K")
    told = r"'silent' tells no error to expect: .*tally\.variance"
    silent = packages.estimators(monkeypatch, silent=f"{__name__}:silent")
    with silent, pytest.raises(PlanError, match=told):
        TileEstimator([Source(kind) for kind in kinds], "silent")


def test_nothing_is_read_before_it_is_asked_for() -> None:
    class Unread(ArrayTensor):
        def part(self, start: int, end: int) -> np.ndarray:
            raise AssertionError("nobody asked")

    kind = type_by_name("Q4_K")
    unread = Unread("weight", (512,), kind, np.zeros(288, np.uint8))
    tile = StoredTile([unread], 0, 512).part(256, 512)
    assert len(tile) == 1
    with pytest.raises(AssertionError, match="nobody asked"):
        tile.sub_blocks(0)


def test_bytes_are_those_of_the_file_and_only_blocks_have_any() -> None:
    x = weights()
    grid, vector = tensor("Q5_K", x), tensor("Q4_0", x)
    matrix = round_columns(x, 127, 1e-5)
    tile = StoredTile([grid, vector, matrix], 256, 768)
    np.testing.assert_array_equal(tile.raw(0), grid.raw[176 : 3 * 176])
    np.testing.assert_array_equal(tile.raw(1), vector.raw[8 * 18 : 24 * 18])
    assert tile.raw(2) is None
    assert [tile.sub_blocks(k) is not None for k in range(3)] == [True, False, False]
    assert len(StoredTile()) == 0
