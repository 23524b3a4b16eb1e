"""GGUF files on servers: the header first, in as few requests as its size takes."""

from collections.abc import Callable
from functools import partial

from recover.containers.gguf.cursor import ShortError
from recover.containers.gguf.header import Header
from recover.containers.remote.cache import Cache, RemoteBytes
from recover.containers.remote.fetching import RemoteFile

_FIRST = 1 << 20
_MOST_MORE = 1 << 22


def read_remote(
    url: str, parse: Callable[[bytes, int], Header]
) -> tuple[Header, Callable[[int, int], RemoteBytes], int]:
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
