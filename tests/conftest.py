"""Models that the tests share: real weights whose truth is known, quantized by llama.cpp."""

import fcntl
import gc
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from numpy.typing import NDArray

from recover._compiled.float16 import all_finite
from recover.containers.gguf.reader import open_gguf
from recover.quants import dequantize
from tests.support.models import DATA, SHARED, TINY, quantize

settings.register_profile("fixed", derandomize=True, deadline=None, print_blob=True)
settings.load_profile("fixed")

LONG = "long", "quality", "inference"
"""Marks of tests that may take long."""
FIRST = "test_posterior_quality.py", "test_mixes.py"
"""Files whose kernels others need as well: those that estimate, and those that encode."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with long tests come first, then those of many tests: none that is long comes last.

    A file stays in one process (``tests/run``), and others would wait for it at the end. Two begin,
    so that two processes with an empty cache do not compile the same kernels at the same time.
    """
    n_tests = Counter(item.path for item in items)
    long = {item.path for item in items if any(map(item.get_closest_marker, LONG))}
    items.sort(
        key=lambda item: (
            item.path.name not in FIRST,
            item.path not in long,
            -n_tests[item.path],
            item.path,
        )
    )


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """Keep some files together where all tests of a file are to be."""
    if config.getoption("dist") != "loadfile":
        return None
    from tests.support.scheduling import Scheduling

    return Scheduling(config, log)


def pytest_collection_finish() -> None:
    """Tests stay until the end: whoever collects garbage need not look at them again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def compiled() -> None:
    """Some machine code is there, so that no test meets what a first run says."""
    assert all_finite(np.zeros(1, np.float32))


@pytest.fixture(scope="session")
def tiny() -> list[Path]:
    """The demonstration's Q5_K_M, Q4_K_M and Q2_K, which come with the package."""
    return [DATA / f"tiny-llama-3m-{name}.gguf" for name in ("Q5_K_M", "Q4_K_M", "Q2_K")]


@pytest.fixture(scope="session")
def llama_29m() -> Path:
    """A trained Llama of 29 million weights, if it is there."""
    path = SHARED / "llama-29m-bf16.gguf"
    if not path.exists():
        pytest.skip("../shared/models/llama-29m-bf16.gguf is not there")
    return path


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """A folder of this run, which all of its processes see."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if hasattr(request.config, "workerinput") else own


@pytest.fixture(scope="session")
def quantized_29m(llama_29m: Path, shared_folder: Path) -> dict[str, Path]:
    """What llama.cpp makes of it, once for all processes: who comes second waits for the files."""
    names = ("Q5_K_M", "Q4_K_M", "Q2_K", "Q8_0", "Q6_K")
    folder = shared_folder / "llama-29m"
    with (shared_folder / "llama-29m.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            making = shared_folder / "llama-29m.making"
            making.mkdir(exist_ok=True)
            quantize(llama_29m, making, names)
            making.rename(folder)
    return {name: folder / f"llama-29m-{name}.gguf" for name in names}


@pytest.fixture(scope="session")
def real_rows() -> NDArray[np.float32]:
    """Trained weights (n_rows, 768) of the small model that comes with the package."""
    tensor = open_gguf(TINY).tensors["blk.1.ffn_down.weight"]
    return dequantize(tensor.raw, tensor.type).reshape(-1, tensor.dims[0])


@pytest.fixture
def rng() -> np.random.Generator:
    """Random numbers, the same in every run."""
    return np.random.default_rng(20240131)
