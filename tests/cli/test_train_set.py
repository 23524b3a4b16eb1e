"""``recover train-set``."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from recover.cli import main
from recover.merge.plan import plan_merge
from recover.training.own_weights import most_common
from tests.support.models import DATA

INPUTS = [str(DATA / f"tiny-llama-3m-{name}.gguf") for name in ("Q5_K_M", "Q4_K_M", "Q2_K")]


def python_with_torch() -> str:
    """The interpreter at work if it has torch, else that which RECOVER_TEST_TORCH names."""
    if importlib.util.find_spec("torch") is not None:
        return sys.executable
    if "RECOVER_TEST_TORCH" not in os.environ:
        pytest.skip("torch is not installed, and RECOVER_TEST_TORCH names no interpreter with it")
    return os.environ["RECOVER_TEST_TORCH"]


@pytest.mark.skipif(importlib.util.find_spec("torch") is not None, reason="torch is here")
def test_without_torch_it_says_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train-set", *INPUTS, "-o", str(tmp_path / "net.npz")]) == 1
    assert "pip install 'recover-weights[gpu]'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_options_are_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = str(tmp_path / "net.npz")
    for wrong in (["--steps", "0"], ["--seconds", "-1"], ["--seconds", "x"], ["--device", "tpu"]):
        with pytest.raises(SystemExit, match="2"):
            main(["train-set", *INPUTS, "-o", output, *wrong])
    assert "is no number of" in capsys.readouterr().err


def test_the_set_of_most_weights_is_chosen(tmp_path: Path) -> None:
    plan = plan_merge(INPUTS, tmp_path / "merged.gguf")
    names, tensors = most_common(plan)
    assert names == ("Q5_K", "Q4_K", "Q2_K")
    assert len(tensors) > 1
    assert all("norm" not in tensor.name for tensor in tensors)


@pytest.mark.slow
def test_a_network_is_trained_and_taken(tmp_path: Path) -> None:
    """With torch on the CPU."""
    python, net, out = python_with_torch(), tmp_path / "net.npz", tmp_path / "m.gguf"
    options = ["--device", "cpu", "--steps", "2", "--json", "-q"]
    command = [python, "-m", "recover", "train-set", *INPUTS, "-o", str(net), *options]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    told = json.loads(done.stdout)
    assert told["types"] == ["Q5_K", "Q4_K", "Q2_K"]
    assert told["n_steps"] == 2
    assert told["held_out"]["after"] < 0.99 * told["held_out"]["posterior"]
    with np.load(net) as arrays:
        assert arrays["names"].tolist() == told["types"]
    assert main(["merge", *INPUTS, "-o", str(out), "--method", "joint", "--net", str(net)]) == 0


@pytest.mark.slow
def test_torch_gives_the_figures_of_the_kernels() -> None:
    """Within the rounding of float32, and inside all cells."""
    code = """
import numpy as np
from recover.estimators.methods import joint
from tests.support.joint_inputs import encode, hard_weights, run, sources_of
for name in ("Q5_K+Q4_K+Q2_K", "IQ4_XS+Q3_K", "Q4_K*+Q3_K*"):
    for kind, x in hard_weights().items():
        sources = sources_of(name)
        raws = encode(sources, x)
        joint.device = lambda: None
        one = run("joint", sources, raws, x.size)
        joint.device = lambda: "cpu"
        other = run("joint", sources, raws, x.size)
        far = abs(one[0] - other[0]) / np.maximum(one[1], 1e-3 * abs(one[0]).mean() + 1e-30)
        assert other[3], (name, kind)
        assert far.max() < 1e-3, (name, kind, far.max())
        np.testing.assert_allclose(other[1], one[1], rtol=1e-4)
        np.testing.assert_allclose(other[2].array, one[2].array, rtol=1e-4)
"""
    subprocess.run([python_with_torch(), "-c", code], check=True)
