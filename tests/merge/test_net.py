"""``merge --net``: a network in a file, for the inputs' types alone."""

from pathlib import Path

import numpy as np
import pytest

from recover.errors import PlanError, UsageError
from recover.estimators._joint_files import read_network, save_network, serving, terms_of
from recover.merge.execute import execute_merge
from recover.merge.plan import MergePlan, plan_merge
from tests.support.models import DATA

INPUTS = [DATA / f"tiny-llama-3m-{name}.gguf" for name in ("Q5_K_M", "Q4_K_M", "Q2_K")]
NAMES = "Q5_K", "Q4_K", "Q2_K"


@pytest.fixture
def net(tmp_path: Path) -> Path:
    """The shipped network, of which the last layer says nothing."""
    entry = serving("+".join(NAMES))
    assert entry is not None
    terms = dict(terms_of(entry, NAMES))
    terms["end.weight"] = np.zeros_like(terms["end.weight"])
    terms["end.bias"] = np.zeros_like(terms["end.bias"])
    path = tmp_path / "net.npz"
    with path.open("wb") as file:
        save_network(file, NAMES, terms)
    return path


def merged(tmp_path: Path, **options: object) -> tuple[bytes, MergePlan]:
    path = tmp_path / "merged.gguf"
    plan = plan_merge(INPUTS, path, tensors=r"blk\.0\.ffn_up", **options)  # type: ignore[arg-type]
    plan = MergePlan.from_record(plan.to_record())
    execute_merge(plan)
    return path.read_bytes(), plan


def values(content: bytes) -> "np.ndarray[tuple[int], np.dtype[np.float16]]":
    return np.frombuffer(content[-131072:], np.float16)


def test_the_network_of_the_file_is_taken(tmp_path: Path, net: Path) -> None:
    given, plan = merged(tmp_path, method="joint", net=net)
    assert any(source.network for tensor in plan.tensors for source in tensor.sources)
    shipped, _ = merged(tmp_path, method="joint")
    posterior, _ = merged(tmp_path, method="posterior")
    # One that corrects nothing gives the posterior, but for rounding.
    np.testing.assert_allclose(values(given), values(posterior), atol=1e-4)
    assert np.abs(values(shipped) - values(posterior)).max() > 1e-4


def test_other_types_are_warned_of(tmp_path: Path, net: Path) -> None:
    plan = plan_merge(INPUTS[:2], tmp_path / "merged.gguf", method="joint", net=net)
    assert any("of other types than any tensor has" in each for each in plan.warnings)


def test_what_is_no_network_is_refused(tmp_path: Path, net: Path) -> None:
    broken = tmp_path / "broken.npz"
    whole = net.read_bytes()
    for content in (b"", whole[:1000], INPUTS[0].read_bytes()[:5000]):
        broken.write_bytes(content)
        with pytest.raises(PlanError, match=r"broken\.npz is no network"):
            plan_merge(INPUTS, tmp_path / "merged.gguf", method="joint", net=broken)
    with np.load(net) as arrays:
        terms = {key: arrays[key] for key in arrays.files}
    for name in ("names", "end.bias", "rounds.1.spread.weight"):
        with broken.open("wb") as file:
            np.savez_compressed(file, **{k: v for k, v in terms.items() if k != name})
        with pytest.raises(PlanError, match=r"broken\.npz is no network"):
            plan_merge(INPUTS, tmp_path / "merged.gguf", method="joint", net=broken)
    with pytest.raises(PlanError, match=r"missing\.npz cannot be read"):
        plan_merge(INPUTS, tmp_path / "m.gguf", method="joint", net=tmp_path / "missing.npz")
    with pytest.raises(UsageError, match="posterior uses no network; joint does"):
        plan_merge(INPUTS, tmp_path / "merged.gguf", net=net)


def test_a_file_that_was_changed_is_refused(tmp_path: Path, net: Path) -> None:
    plan = plan_merge(
        INPUTS, tmp_path / "m.gguf", method="joint", net=net, tensors=r"blk\.0\.ffn_up"
    )
    record = plan.to_record()
    net.write_bytes(net.read_bytes() + b" ")
    read_network.cache_clear()  # as in another process
    with pytest.raises(PlanError, match="was changed in the meantime"):
        execute_merge(MergePlan.from_record(record))
