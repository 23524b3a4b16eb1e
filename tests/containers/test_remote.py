"""Files on servers: the bytes of local ones, whatever servers do, or a message that says why."""

import gzip
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count, pairwise
from pathlib import Path

import numpy as np
import pytest

from recover._text import printable, url_of
from recover.containers.gguf.reader import open_gguf
from recover.containers.remote import cache, connections, fetching
from recover.containers.remote.fetching import RemoteFile
from recover.containers.remote.hub import address_of
from recover.errors import GGUFError, InputError
from tests.support.gguf_files import Stored, stored, write_gguf
from tests.support.http_files import Content, Fault, Files, Handler, served, tag
from tests.support.models import TINY

NAME = "/model.gguf"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Files]:
    """One that has the small model; failures are over soon."""
    monkeypatch.setattr(fetching, "FIRST_WAIT", 0.001)
    monkeypatch.setattr(connections, "TIMEOUT", 0.5)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with served({NAME: TINY.read_bytes()}) as files:
        yield files


def check_same(url: str, path: Path = TINY) -> None:
    """Compare all tensors, in parts and as a whole."""
    there, here = open_gguf(url), open_gguf(path)
    assert there.n_bytes == here.n_bytes
    assert list(there.tensors) == list(here.tensors)
    for name, tensor in here.tensors.items():
        other, n = there.tensors[name], tensor.n_weights
        size = tensor.type.block_size
        cuts = [0, n // 3 // size * size, n // 2 // size * size, n]
        for start, end in pairwise(cuts):
            assert np.array_equal(other.part(start, end), tensor.part(start, end))
        assert np.array_equal(other.raw, tensor.raw)
        assert not other.raw.flags.writeable


def test_same_bytes(server: Files) -> None:
    check_same(server.url + NAME)
    assert server.n_sent < 2 * TINY.stat().st_size


def test_memory_is_bounded(server: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_MOST_KEPT", 100_000)
    check_same(server.url + NAME)


# Servers that fail.


def fails(handler: Handler, whole: Content, start: int, end: int) -> bool:
    handler.refuse(500)
    return True


def stalls(handler: Handler, whole: Content, start: int, end: int) -> bool:
    handler.files.over.wait(2)
    handler.close_connection = True
    return True


def cuts(handler: Handler, whole: Content, start: int, end: int) -> bool:
    handler.send_response(206)
    handler.send_header("Content-Length", str(end - start))
    handler.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(whole)}")
    handler.send_header("ETag", tag(whole))
    handler.end_headers()
    handler.write(whole[start : (start + end + 1) // 2])
    handler.close_connection = True
    return True


def hangs_up(handler: Handler, whole: Content, start: int, end: int) -> bool:
    handler.close_connection = True
    return True


def sends_other_range(handler: Handler, whole: Content, start: int, end: int) -> bool:
    handler.send_range(whole, start, end, shift=-1 if start else 1)
    return True


def sends_no_range(handler: Handler, whole: Content, start: int, end: int) -> bool:
    handler.send(206, whole[start:end], {})
    return True


def talks_nonsense(handler: Handler, whole: Content, start: int, end: int) -> bool:
    handler.write(b"what?\r\n\r\n")
    handler.close_connection = True
    return True


def says_less(handler: Handler, whole: Content, start: int, end: int) -> bool:
    """A length that is too short: what follows looks like the beginning of the next answer."""
    said = {"Content-Range": f"bytes {start}-{end - 1}/{len(whole)}", "ETag": tag(whole)}
    handler.send(206, whole[start:end], said | {"Content-Length": str((end - start) // 2)})
    return True


def says_more(handler: Handler, whole: Content, start: int, end: int) -> bool:
    """A length that is too long; all that was asked for comes."""
    said = {"Content-Range": f"bytes {start}-{end - 1}/{len(whole)}", "ETag": tag(whole)}
    handler.send(206, whole[start:end], said | {"Content-Length": str(end - start + 1000)})
    handler.close_connection = True
    return True


def sends_chunks(handler: Handler, whole: Content, start: int, end: int) -> bool:
    """Pieces of any length, the last of which never comes."""
    handler.send_response(206)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(whole)}")
    handler.send_header("ETag", tag(whole))
    handler.end_headers()
    piece = whole[start : (start + end + 1) // 2]
    handler.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\nffff\r\n")
    handler.close_connection = True
    return True


def has_bad_gateway(handler: Handler, whole: Content, start: int, end: int) -> bool:
    """A page for people, as servers in front of others send it."""
    handler.send(502, b"<html>" * 10_000, {"Content-Type": "text/html"})
    return True


def sends_all(handler: Handler, whole: Content, start: int, end: int) -> bool:
    """The whole file, as one of several servers may that knows of no ranges; but not at first."""
    if start == 0:
        return False
    handler.send(200, whole[:], {"ETag": tag(whole)})
    return True


FAULTS = [fails, stalls, cuts, hangs_up, sends_other_range, sends_no_range, talks_nonsense]
FAULTS += [says_less, sends_chunks, has_bad_gateway, sends_all]


@pytest.mark.parametrize("fault", FAULTS)
def test_survives_failures(server: Files, fault: Fault) -> None:
    """Each second request fails, so that each range needs two of them."""
    numbers = count()

    def sometimes(handler: Handler, whole: Content, start: int, end: int) -> bool:
        return next(numbers) % 3 == 1 and fault(handler, whole, start, end)

    server.fault = sometimes
    check_same(server.url + NAME)
    assert next(numbers) > 8


def test_a_length_that_is_too_long(server: Files) -> None:
    server.fault = says_more
    check_same(server.url + NAME)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (fails, "500 'Internal Server Error'"),
        (stalls, "no answer for 0.5 seconds"),
        (hangs_up, "attempts: "),
        (sends_other_range, "asked for bytes 0-"),
        (sends_no_range, "a range that says ''"),
        (talks_nonsense, "no HTTP as it should be"),
    ],
)
def test_reports_what_does_not_end(
    server: Files, fault: Fault, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "N_ATTEMPTS", 3)
    server.fault = fault
    with pytest.raises(GGUFError, match="after 3 attempts") as caught:
        open_gguf(server.url + NAME)
    assert said in str(caught.value)
    assert str(caught.value).startswith(f"{server.url}{NAME}: ")
    assert len(server.requests) == 3


def test_goes_on_where_a_connection_was_cut(server: Files) -> None:
    """Though every answer ends in the middle, what came is kept."""
    server.fault = cuts
    model = open_gguf(server.url + NAME)
    name, tensor = max(open_gguf(TINY).tensors.items(), key=lambda each: each[1].n_bytes)
    assert np.array_equal(model.tensors[name].raw, tensor.raw)
    assert server.n_sent < 1.1 * ((1 << 20) + tensor.n_bytes)


def test_reports_a_changed_file(server: Files) -> None:
    model = open_gguf(server.url + NAME)
    content = bytearray(server.content[NAME])
    content[-1] ^= 1
    server.content[NAME] = bytes(content)
    *_, tensor = model.tensors.values()
    with pytest.raises(InputError, match="was changed while it was read") as caught:
        tensor.part(0, tensor.n_weights)
    assert server.url + NAME in str(caught.value)


@pytest.mark.parametrize("status", [200, 206])
def test_reports_another_tag(server: Files, status: int) -> None:
    """Also where the server does not look at what the range is of."""
    model = open_gguf(server.url + NAME)

    def says_another(handler: Handler, whole: Content, start: int, end: int) -> bool:
        said = {"Content-Range": f"bytes {start}-{end - 1}/{len(whole)}", "ETag": '"another"'}
        handler.send(status, whole[start:end], said)
        return True

    server.fault = says_another
    *_, tensor = model.tensors.values()
    with pytest.raises(InputError, match="was changed while it was read"):
        tensor.part(0, tensor.n_weights)


def test_refuses_what_is_packed(server: Files) -> None:
    def packs(handler: Handler, whole: Content, start: int, end: int) -> bool:
        body = gzip.compress(whole[start:end], 0)
        said = f"bytes {start}-{end - 1}/{len(whole)}"
        handler.send(206, body, {"Content-Range": said, "Content-Encoding": "gzip"})
        return True

    server.fault = packs
    with pytest.raises(GGUFError, match="packs what it sends"):
        open_gguf(server.url + NAME)


def test_reports_redirections_without_an_end(
    server: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    def leads_back(handler: Handler, whole: Content, start: int, end: int) -> bool:
        handler.send(302, b"", {"Location": NAME})
        return True

    monkeypatch.setattr(fetching, "N_ATTEMPTS", 2)
    server.fault = leads_back
    with pytest.raises(GGUFError, match="from one URL to the next"):
        open_gguf(server.url + NAME)


def test_reports_a_file_that_is_gone(server: Files) -> None:
    model = open_gguf(server.url + NAME)
    del server.content[NAME]
    *_, tensor = model.tensors.values()
    with pytest.raises(InputError, match="there is no such file"):
        tensor.part(0, tensor.n_weights)


def ignores_ranges(handler: Handler, whole: Content, start: int, end: int) -> bool:
    handler.send(200, whole[:], {"ETag": tag(whole)})
    return True


@pytest.mark.parametrize("status", [401, 403, 404, 416])
def test_asks_once_for_what_is_not_to_be_had(server: Files, status: int) -> None:
    def refuses(handler: Handler, whole: Content, start: int, end: int) -> bool:
        handler.refuse(status)
        return True

    server.fault = refuses
    with pytest.raises(GGUFError, match=str(status)):
        open_gguf(server.url + NAME)
    assert len(server.requests) == 1


def test_refuses_a_server_without_ranges(server: Files) -> None:
    server.fault = ignores_ranges
    with pytest.raises(GGUFError, match="sends no ranges of files"):
        open_gguf(server.url + NAME)
    assert server.n_sent <= TINY.stat().st_size


def test_refuses_an_unknown_server() -> None:
    with pytest.raises(GGUFError, match="name"):
        open_gguf("http://nowhere.invalid/a.gguf")


# Redirections, and the Hub.


def test_follows_redirections(server: Files) -> None:
    """Later requests go where the first one led to; what lets in stays with its server."""

    def leads_on(handler: Handler, whole: Content, start: int, end: int) -> bool:
        if handler.path != NAME:
            return False
        handler.send(302, b"", {"Location": f"{other.url}/far?key=1"})
        return True

    server.fault = leads_on
    with served({"/far?key=1": TINY.read_bytes()}) as other:
        check_same(server.url + NAME)
    assert len(server.requests) == 1
    assert len(other.requests) > 1


def test_asks_again_where_a_link_has_expired(server: Files) -> None:
    keys = count()

    def leads_on(handler: Handler, whole: Content, start: int, end: int) -> bool:
        path = f"/far?key={next(keys)}"
        other.content.clear()
        other.content[path] = whole
        handler.send(302, b"", {"Location": other.url + path})
        return True

    server.fault = leads_on
    with served({}) as other:
        model = open_gguf(server.url + NAME)
        other.content.clear()
        tensor = max(model.tensors.values(), key=lambda each: each.n_bytes)
        assert tensor.raw.size == tensor.n_bytes


def test_reads_from_the_hub(server: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    """The token goes to the Hub alone, not to where it leads."""

    def leads_on(handler: Handler, whole: Content, start: int, end: int) -> bool:
        handler.send(302, b"", {"Location": f"{other.url}/far"})
        return True

    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_TOKEN", "secret")
    server.content["/me/it/resolve/v1/a/model.gguf"] = TINY.read_bytes()
    server.fault = leads_on
    with served({"/far": TINY.read_bytes()}) as other:
        assert open_gguf("hf://me/it@v1/a/model.gguf").n_bytes == TINY.stat().st_size
    assert server.requests[0][1]["Authorization"] == "Bearer secret"
    assert all("Authorization" not in headers for _, headers in other.requests)


def test_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    hub = "https://huggingface.co/me/it/resolve"
    assert address_of("hf://me/it/a.gguf").url == f"{hub}/main/a.gguf"
    assert (
        address_of("hf://me/it@refs%2Fpr%2F1/b/a b.gguf").url == f"{hub}/refs%2Fpr%2F1/b/a%20b.gguf"
    )
    assert address_of("https://a.org/b c%20d.gguf?e=f#g").url == "https://a.org/b%20c%20d.gguf?e=f"
    for wrong in ("hf://me", "hf://me/it", "hf://me/it@v1"):
        with pytest.raises(GGUFError, match="write hf://OWNER/REPO/FILE"):
            address_of(wrong)


def test_paths_that_are_urls() -> None:
    for url in ("https://a.org/b/c.gguf", "http://127.0.0.1:80/c", "hf://me/it@v1/c.gguf"):
        assert url_of(Path(url)) == url_of(Path(url).absolute()) == url_of(url) == url
        assert printable(Path(url)) == url
    for path in ("a/b.gguf", "/a/b:c/d", "ftp://a/b", "https:", "ahttps://b"):
        assert url_of(path) is None


# What is fetched.


def test_header_first(server: Files, tmp_path: Path) -> None:
    """Of a file with a long header that is all, whatever follows."""
    words = [f"word {i}" for i in range(200_000)]
    tensors: dict[str, Stored] = {"t": stored("F16", np.zeros((2048, 4096), np.float32))}
    path = tmp_path / "long.gguf"
    write_gguf(path, tensors, add=lambda writer: writer.add_token_list(words))
    server.content["/long.gguf"] = path.read_bytes()
    model = open_gguf(server.url + "/long.gguf")
    assert model.get("tokenizer.ggml.tokens")[-1] == words[-1]
    size = model.header_sizes[0]
    assert size > 3 << 20
    assert size <= server.n_sent < size + (4 << 20)


def test_samples_cost_little(server: Files) -> None:
    model = open_gguf(server.url + NAME)
    tensor = max(model.tensors.values(), key=lambda each: each.n_bytes)
    before = server.n_sent
    for start in range(0, tensor.n_weights, tensor.n_weights // 8 // 256 * 256):
        tensor.part(start, min(start + 256, tensor.n_weights))
    assert server.n_sent - before <= 10 * 8192


def test_reads_ahead(server: Files) -> None:
    """A file that is read from the front to the back takes few requests."""
    content = np.random.default_rng(0).bytes(30 << 20)
    server.content["/long"] = content
    file = RemoteFile(server.url + "/long")
    identity, _ = file.start(1)
    pages = cache.Cache(file, identity.n_bytes)
    for start in range(0, len(content), 100_000):
        assert pages.read(start, start + 100_000).tobytes() == content[start : start + 100_000]
    assert len(server.requests) < 20
    assert server.n_sent == len(content) + 1


def test_threads_share_what_is_fetched(server: Files) -> None:
    content = np.random.default_rng(0).bytes(4 << 20)
    server.content["/long"] = content
    file = RemoteFile(server.url + "/long")
    pages = cache.Cache(file, file.start(1)[0].n_bytes)

    def read(start: int) -> bool:
        return pages.read(start, start + 70_000).tobytes() == content[start : start + 70_000]

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(read, list(range(0, 4_000_000, 50_000)) * 2))
    assert server.n_sent < len(content) + (1 << 14)
