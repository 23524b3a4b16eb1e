"""GGUF files on servers: the header first, in as few requests as its size takes.

What speaks with servers is imported when there is one.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from recover.containers.gguf.cursor import ShortError
from recover.containers.gguf.header import Header
from recover.containers.model import StoredTensor

if TYPE_CHECKING:
    from recover.containers.remote.cache import RemoteBytes

_FIRST = 1 << 20
_MOST_MORE = 1 << 22
_lock = threading.Lock()
_n_sparing = 0


def read_remote(
    url: str, parse: Callable[[bytes, int], Header]
) -> tuple[Header, "Callable[[int, int], RemoteBytes]", int]:
    """The header of a file on a server, what gives a range of its bytes, and their number.

    The bytes of a range are fetched when they are asked for.

    Parameters
    ----------
    url : str
        Of the file.
    parse : callable
        ``parse(first bytes, size of the file) -> Header``; a `ShortError` if they are too few.

    Raises
    ------
    GGUFError, InputError
        As `parse` does, without the URL, and `RemoteFile.start` and `RemoteFile.fetch`, with it.
    """
    from recover.containers.remote.cache import Cache, RemoteBytes
    from recover.containers.remote.fetching import RemoteFile

    file = RemoteFile(url)
    identity, data = file.start(_FIRST)
    while True:
        try:
            header = parse(data, identity.n_bytes)
            break
        except ShortError as error:
            end = max(error.needed, len(data) + min(len(data), _MOST_MORE))
            data += file.fetch(len(data), min(end, identity.n_bytes))
    return header, partial(RemoteBytes, Cache(file, identity.n_bytes, data)), identity.n_bytes


@contextmanager
def sparing() -> Iterator[None]:
    """While only people are told of files on servers, look at fewer of their weights.

    What decides on the bytes of an output looks at as many as in local files.
    """
    global _n_sparing
    with _lock:
        _n_sparing += 1
    try:
        yield
    finally:
        with _lock:
            _n_sparing -= 1


def is_spared(tensor: StoredTensor) -> bool:
    """Whether a tensor is on a server, and few of its weights are to be looked at."""
    stored = getattr(tensor, "stored", None)
    return bool(_n_sparing and getattr(stored, "is_on_a_server", False))
