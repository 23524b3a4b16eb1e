"""Networks of the method `joint` learn: a few steps on the CPU, where torch is installed."""

import importlib.util
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recover.quants import F32Array

HAS_TORCH = importlib.util.find_spec("torch") is not None
if HAS_TORCH:
    import torch

    from recover.estimators._joint_torch import assemble, begin, infer
    from recover.training.learner import Learner
    from recover.training.of_set import batch_of, in_order, train
    from tests.training import any_set, joint

    torch.set_num_threads(1)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not HAS_TORCH, reason="torch, with which networks learn, is not installed"),
]

NAMES = "Q4_K", "Q2_K"
ANY = {"kinds": "plain", "seconds": 1e6, "begins_at": 0.0, "ends_at": 1.0, "rate": 1e-3, "seed": 3}
SIZE = 64  # superblocks


def draw(rng: np.random.Generator, n: int) -> F32Array:
    return (0.05 * rng.standard_normal((n, 256))).astype(np.float32)


def learner(seed: int = 0, rate: float = 4e-3) -> "Learner":
    torch.manual_seed(seed)
    return Learner(begin(16, 1, len(NAMES)), "cpu", rate)


def trained(seed: int, n_steps: int, n_threads: int = 1) -> tuple[Any, Any]:
    """What was learned, and what it gains on superblocks that were held out."""
    learns, held = learner(), draw(np.random.default_rng(9), 256)
    options = {"n_steps": n_steps, "size": SIZE, "seed": seed, "n_threads": n_threads}
    gain = train(learns, NAMES, draw, held, **options)  # type: ignore[arg-type]
    return learns.mean, gain


def are_equal(one: Any, other: Any) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_it_learns_and_a_seed_tells_what() -> None:
    """The posterior of weights that were not learned from is mended, whatever the threads."""
    terms, gain = trained(1, 60)
    assert gain.n_steps > 0
    assert gain.after < gain.before
    again, _ = trained(1, 60, n_threads=2)
    other, _ = trained(2, 60)
    assert are_equal(terms, again)
    assert not are_equal(terms, other)


def test_what_was_interrupted_goes_on_as_if_nothing_had_been() -> None:
    rng = np.random.default_rng(4)
    batches = [batch_of(rng, draw(rng, SIZE), NAMES) for _ in range(12)]
    whole, first, second = learner(), learner(), learner(seed=7)
    for i, batch in enumerate(batches):
        whole.step(batch, i / 12)
    for i, batch in enumerate(batches[:6]):
        first.step(batch, i / 12)
    second.resume(first.record())
    assert second.n_steps == 6
    for i, batch in enumerate(batches[6:], 6):
        second.step(batch, i / 12)
    assert are_equal(dict(whole.terms), dict(second.terms))
    assert are_equal(whole.mean, second.mean)


def test_batches_come_in_order() -> None:
    def make(i: int) -> list[Any]:
        return [i]

    batches = in_order(make, 5, 3)
    assert [next(batches)[0] for _ in range(20)] == list(range(5, 25))
    batches.close()  # type: ignore[attr-defined]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder as `tests.training.prepare` writes it, of few weights."""
    rng = np.random.default_rng(2)
    np.save(tmp_path / "train.npy", draw(rng, 300).astype(np.float16))
    for name in ("held", "tiny", "llama"):
        np.save(tmp_path / f"{name}.npy", draw(rng, 32))
    return tmp_path


def run(module: Any, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr("sys.argv", ["", *map(str, arguments)])
    module.main()


def test_the_script_for_sets_writes_and_resumes(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--sets", "Q4_K+Q2_K", "--shape", "16x1", "--steps", "2", "--size", SIZE)
    run(joint, monkeypatch, data, data, *options)
    once = torch.load(data / "nets.pt", weights_only=False)["Q4_K+Q2_K"]
    assert once["n_steps"] == 2
    assert "Q4_K+Q2_K: " in capsys.readouterr().out
    run(joint, monkeypatch, data, data, *options, "--resume", data / "nets.pt")
    assert torch.load(data / "nets.pt", weights_only=False)["Q4_K+Q2_K"]["n_steps"] == 4


def test_the_script_for_any_set_writes_resumes_and_measures(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = [("Q4_K", "Q2_K"), ("Q6_K", "Q4_K")]
    monkeypatch.setitem(any_set.LOOKED_AT, "plain", ("Q4_K+Q2_K",))
    monkeypatch.setattr(any_set, "all_sets", lambda _kinds: few)
    args = Namespace(data=data, out=data, workers=1, size=SIZE, width=48, steps=2, measure=True)
    vars(args).update(ANY, begin=None, resume=None)
    any_set.train(args)
    once = torch.load(data / "any.pt", weights_only=False)
    assert once["n_steps"] == 2
    assert (data / "gains.json").exists()
    vars(args).update(resume=data / "any.pt", measure=False)
    any_set.train(args)
    twice = torch.load(data / "any.pt", weights_only=False)
    assert twice["n_steps"] == 4
    assert twice["next_batch"] > once["next_batch"]


def test_a_wider_network_begins_as_what_it_was() -> None:
    torch.manual_seed(1)
    known = {name: torch.randn_like(each) / 8 for name, each in begin(16, 2, 2).items()}
    told = torch.randn(3, 16, 22, 16), torch.randn(3, 30, 16)
    same(known, joint.widened(known, begin(24, 2, 2)), told, lambda terms: terms)


def test_a_wider_network_for_any_set_begins_as_what_it_was(tmp_path: Path) -> None:
    torch.manual_seed(1)
    known = any_set.first_terms(None, "plain", 48)
    known = {name: torch.randn_like(each) / 8 for name, each in known.items()}
    torch.save({"mean": known}, tmp_path / "any.pt")
    wide = any_set.first_terms(tmp_path / "any.pt", "plain", 56)
    rows = any_set.rows_of(NAMES, "plain", "cpu")
    told = torch.randn(3, 16, 22, 16), torch.randn(3, 30, 16)
    same(known, wide, told, lambda terms: assemble(terms, rows, torch.ones(2)))


def same(known: Any, wide: Any, told: Any, make: Callable[[Any], Any]) -> None:
    assert len(wide["begin.bias"]) > len(known["begin.bias"])
    for one, other in zip(infer(make(known), *told), infer(make(wide), *told), strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-4)
