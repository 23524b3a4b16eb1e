"""Parts of a merge in processes that are killed at any moment, until all are done."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from recover.quantize.execute import execute_quantize
from recover.quantize.plan import plan_quantize
from tests.support.sharding import contents, figures, hidden

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
LAYOUTS = {
    "file": [],
    "parts and deviations": ["--split-max-size", "9M", "--uncertainty", "deviation.gguf"],
    "folder": ["--max-shard-size", "9MB"],
}


@pytest.fixture(scope="module")
def inputs(llama_29m: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("inputs")
    paths = [folder / f"{kind}.gguf" for kind in ("Q5_K", "Q4_K", "Q2_K")]
    for path in paths:
        execute_quantize(plan_quantize(llama_29m, path, path.stem))
    return paths


def start(inputs: list[Path], home: Path, layout: str, *more: str) -> subprocess.Popen[str]:
    home.mkdir(exist_ok=True)
    output = "out/" if layout == "folder" else "out.gguf"
    arguments = ["merge", *map(str, inputs), "-o", output, "--json", *LAYOUTS[layout], *more]
    return subprocess.Popen(
        [sys.executable, "-m", "recover", *arguments],
        cwd=home,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> dict[str, Any]:
    printed, said = process.communicate()
    assert process.returncode == 0, said
    document: dict[str, Any] = json.loads(printed)
    return document


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("layout", LAYOUTS)
def test_killed_at_any_moment(inputs: list[Path], tmp_path: Path, layout: str, seed: int) -> None:
    rng = random.Random(seed)
    expected = ended(start(inputs, tmp_path / "once", layout))
    home = tmp_path / "home"
    shards = ["1/3", "2/3", "3/3"]
    rng.shuffle(shards)
    # At once, two of them killed.
    processes = [start(inputs, home, layout, "--shard", shard) for shard in shards]

    for process in processes[:2]:
        try:
            process.wait(rng.uniform(1.0, 4.0))
        except subprocess.TimeoutExpired:
            process.kill()

        process.communicate()
    documents = [ended(processes[2])]
    # Repeated, one after the other, whether they were done or not.
    documents += [ended(start(inputs, home, layout, "--shard", shard)) for shard in shards[:2]]
    last = documents[-1]
    assert figures(last) == figures(expected)
    assert contents(home) == contents(tmp_path / "once")
    assert [name[-12:] for name in hidden(home)] == [".shards.json"]
