"""Commands on files on servers do what they do on local ones."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from recover.cli import main
from recover.containers.remote import cache, fetching
from tests.support.gguf_files import stored, write_gguf
from tests.support.http_files import Content, Files, Handler, served


@pytest.fixture
def server(tiny: list[Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[Files]:
    """One that has three quantizations, and fails now and then."""
    monkeypatch.setattr(fetching, "FIRST_WAIT", 0.001)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    def fails(handler: Handler, whole: Content, start: int, end: int) -> bool:
        if len(handler.files.requests) % 4 != 1:
            return False
        handler.refuse(503)
        return True

    with served({f"/{path.name}": path.read_bytes() for path in tiny}) as files:
        files.fault = fails
        yield files


def test_merges_alike(server: Files, tiny: list[Path], tmp_path: Path) -> None:
    urls = [server.url + name for name in server.content]
    for inputs, name in ((map(str, tiny), "here.gguf"), (urls, "there.gguf")):
        assert main(["merge", *inputs, "-o", str(tmp_path / name), "-q"]) == 0
    assert (tmp_path / "here.gguf").read_bytes() == (tmp_path / "there.gguf").read_bytes()


def test_bounds_alike(server: Files, tiny: list[Path], tmp_path: Path) -> None:
    urls = [server.url + name for name in server.content]
    for inputs, name in ((map(str, tiny), "here"), (urls, "there")):
        assert main(["bounds", *inputs, "-o", str(tmp_path / name), "-q"]) == 0
    assert (tmp_path / "here").read_bytes() == (tmp_path / "there").read_bytes()


def test_inspects(server: Files, tiny: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    url = server.url + next(iter(server.content))
    found = []
    for path in (url, str(tiny[0])):
        assert main(["inspect", path, "--json"]) == 0
        found.append(json.loads(capsys.readouterr().out)["files"][0])
    assert found[0]["path"] == url
    for key in ("architecture", "types"):
        assert found[0][key] == found[1][key]


def test_parts(server: Files, tmp_path: Path) -> None:
    """The first part of a split file stands for all of them; a missing one is named."""
    rng = np.random.default_rng(0)
    tensors = {f"blk.{i}.x.weight": stored("Q4_K", rng.normal(size=(8, 256))) for i in range(4)}
    write_gguf(tmp_path / "m.gguf", tensors, split_max_tensors=2)
    parts = sorted(tmp_path.glob("m-*.gguf"))
    assert len(parts) == 2
    server.content |= {f"/{each.name}": each.read_bytes() for each in parts}
    outputs: list[Path] = []
    for first in (str(parts[0]), f"{server.url}/{parts[0].name}"):
        outputs.append(tmp_path / f"{len(outputs)}.gguf")
        assert main(["merge", first, "-o", str(outputs[-1]), "-q"]) == 0
    assert outputs[0].read_bytes() == outputs[1].read_bytes()
    del server.content[f"/{parts[1].name}"]
    assert main(["merge", f"{server.url}/{parts[0].name}", "-o", str(tmp_path / "no"), "-q"]) != 0


def test_says_what_fails_on_the_way(
    server: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A server that stops working in the middle ends the merge; no output is left."""

    def stops(handler: Handler, whole: Content, start: int, end: int) -> bool:
        if start < 1 << 20:
            return False
        handler.refuse(500)
        return True

    server.fault = stops
    urls = [server.url + name for name in server.content]
    assert main(["merge", *urls, "-o", str(tmp_path / "out.gguf"), "-q"]) != 0
    error = capsys.readouterr().err
    assert server.url in error
    assert "500" in error
    assert not (tmp_path / "out.gguf").exists()


RANGES = {"resume": [["--resume"]] * 2, "shards": [["--shard", f"{i}/2"] for i in (2, 2, 1)]}


@pytest.mark.parametrize("how", RANGES)
def test_goes_on_where_a_server_failed(
    server: Files,
    tiny: list[Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    how: str,
) -> None:
    """The first command loses its server half-way; the same one again makes the local bytes."""
    monkeypatch.setattr(cache, "_MOST_KEPT", 1_000_000)
    home, failing = tmp_path / "home", server.fault
    home.mkdir()
    n_left = 20

    def stops(handler: Handler, whole: Content, start: int, end: int) -> bool:
        nonlocal n_left
        n_left -= any(home.iterdir())  # an output has been begun
        if n_left > 0:
            return False
        handler.refuse(500)
        return True

    urls = [server.url + name for name in server.content]
    for i, options in enumerate(RANGES[how]):
        server.fault = failing if i else stops
        command = ["merge", *urls, "-o", str(home / "out.gguf"), *options, "-q", "--threads", "1"]
        assert main(command) == (0 if i else 1)
        assert i or [path.name for path in home.iterdir()] not in ([], ["out.gguf"])
    assert "500" in capsys.readouterr().err
    assert main(["merge", *map(str, tiny), "-o", str(tmp_path / "here.gguf"), "-q"]) == 0
    assert (home / "out.gguf").read_bytes() == (tmp_path / "here.gguf").read_bytes()
