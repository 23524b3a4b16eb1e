"""The flag that ends work, and steps that nothing divides."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from recover import _stopping as stopping
from recover.execution.tiles import Tile, for_each_tile


@pytest.fixture(autouse=True)
def _no_request() -> Iterator[None]:
    yield
    stopping.reset()


def test_tiles_end_after_those_at_hand() -> None:
    done: list[Tile] = []

    def work(tile: Tile) -> None:
        if len(done) == 2:
            stopping.request(signal.SIGTERM)
        done.append(tile)
        time.sleep(0.01)

    with pytest.raises(stopping.Stopped) as caught:
        for_each_tile([10] * 50, [work])
    assert caught.value.number == signal.SIGTERM
    assert 3 <= len(done) < 30
    assert stopping.is_under_way()


def test_the_first_signal_counts() -> None:
    assert not stopping.is_requested()
    stopping.check()
    stopping.request(signal.SIGINT)
    stopping.request(signal.SIGTERM)
    assert stopping.number() == signal.SIGINT
    stopping.reset()
    stopping.check()


def test_waiting_ends() -> None:
    release = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(release.wait)
        threading.Timer(0.05, stopping.request, [signal.SIGHUP]).start()
        with pytest.raises(stopping.Stopped):
            stopping.wait_for(future)
        release.set()
        assert stopping.wait_for(pool.submit(lambda: 5)) == 5


def test_an_error_of_the_work_is_its_own() -> None:
    def fail() -> None:
        raise TimeoutError("of the work")

    with ThreadPoolExecutor(1) as pool, pytest.raises(TimeoutError, match="of the work"):
        stopping.wait_for(pool.submit(fail))
    with pytest.raises(TimeoutError, match="of the work"):
        stopping.undivided(fail)


def test_interrupts_come_after_what_is_undivided() -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    steps: list[str] = []

    def work() -> None:
        steps.append("begun")
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.02)
        steps.append("ended")

    try:
        with pytest.raises(KeyboardInterrupt):
            stopping.undivided(work)
    finally:
        signal.signal(signal.SIGINT, before)
    assert steps == ["begun", "ended"]
    assert not stopping.is_under_way()


def test_what_must_not_stay() -> None:
    with stopping.temporary_folder("recover-test-") as folder:
        (folder / "file").write_bytes(b"x")
        stopping.remove_what_is_left()
        assert not folder.exists()
    with stopping.temporary_folder("recover-test-") as folder:
        assert folder.exists()
    assert not folder.exists()


def test_facts() -> None:
    stopping.note(Path("a"), "is half there")
    stopping.note(Path("a"), "is complete")
    assert stopping.facts() == {Path("a"): "is complete"}
    stopping.reset()
    assert stopping.facts() == {}
