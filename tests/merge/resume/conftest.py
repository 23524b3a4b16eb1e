"""What the tests of interrupted merges share."""

import sys
from pathlib import Path

import pytest

from recover.merge.execute import execute_merge
from recover.merge.plan import MergePlan
from tests.support.interrupting import OPTIONS, Interrupt, Interrupted, Whole, Workers
from tests.support.resuming import contents, figures, make_plan


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> Workers:
    found = Workers()
    found.watch(monkeypatch)
    return found


@pytest.fixture
def interrupt(workers: Workers) -> Interrupt:
    """Carries out a plan until so many tensors are complete; what it says."""

    def interrupt(plan: MergePlan, n_tensors: int, error: BaseException | None = None) -> list[str]:
        workers.done.clear()
        workers.stops_after, workers.error = n_tensors, error or Interrupted()
        said: list[str] = []
        with pytest.raises(type(workers.error)):
            execute_merge(plan, n_threads=1, resume=True, force=True, tell=said.append)
        workers.stops_after = sys.maxsize
        workers.done.clear()
        return said

    return interrupt


@pytest.fixture(scope="module")
def whole(tiny: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """Files and figures of merges that nothing interrupts."""
    found = {}
    for case, options in OPTIONS.items():
        folder = tmp_path_factory.mktemp("whole")
        result = execute_merge(make_plan(tiny, folder, **options), n_threads=2)
        found[case] = contents(folder), figures(result)
    return found.__getitem__
