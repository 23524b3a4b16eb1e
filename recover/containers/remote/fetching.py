"""Ranges of a file on a server: checked, and asked for again where the server or the way fails.

A file is told from a later one of the same URL by its size and by what the server says of it (ETag,
else Last-Modified), which every answer repeats. RFC 9110, section 14, has the requests.
"""

import http.client
import random
import re
import socket
import ssl
import time
from dataclasses import dataclass
from email.message import Message
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

from recover import _stopping as stopping
from recover._text import printable, quoted
from recover.containers.remote import connections
from recover.containers.remote.connections import Connections, Reply
from recover.containers.remote.hub import Address, address_of
from recover.errors import GGUFError, InputError

N_ATTEMPTS = 7
"""So often a server may fail in sequence, with next to nothing between."""
FIRST_WAIT = 0.25
"""Seconds before the second attempt; then twice as long each time, with a part of it by chance."""

_LONGEST_WAIT = 60.0
_SLOWEST = 10_000  # bytes per second: a server that sends fewer is taken for one that stalls
_PIECE = 1 << 16
_RANGE = re.compile(r"bytes (?P<first>\d+)-(?P<last>\d+)/(?P<total>\d+)")
_FOR_GOOD = {
    400: "the server does not understand the request",
    401: "the server wants to know who asks",
    403: "the server does not let us read it",
    404: "there is no such file",
    405: "the server does not let us read it",
    410: "the file is gone",
    416: "the server has no such range of it: the file is empty, or was changed",
    451: "the server does not let us read it",
}


class _FailedError(Exception):
    """An attempt failed; another one may not. The text is for people."""

    def __init__(self, what: str, wait: float = 0.0) -> None:
        super().__init__(what)
        self.wait = wait


@dataclass(frozen=True)
class Identity:
    """What tells a file from a later one of the same URL."""

    n_bytes: int
    """Its size."""
    stamp: str
    """What the server says of it; empty if that is nothing."""


class RemoteFile:
    """A file on a server; threads may share it.

    Parameters
    ----------
    url : str
        As `recover.containers.remote.hub.address_of` takes it.

    Attributes
    ----------
    url : str
        As given.
    n_fetched : int
        Bytes that came until now.

    Raises
    ------
    GGUFError
        If the URL names no file; the message leaves out the URL.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.n_fetched = 0
        self._connections = Connections()
        self._identity: Identity | None = None
        self._place: Address | None = None
        self._address = address_of(url)

    def start(self, most: int) -> tuple[Identity, bytes]:
        """What the file is, and its first bytes, at most so many.

        Raises
        ------
        GGUFError
            If it cannot be read by ranges; the message leaves out the URL.
        """
        data = self._fetch(0, most)
        assert self._identity is not None
        return self._identity, data

    def fetch(self, start: int, end: int) -> bytes:
        """Bytes `start` to `end`.

        Raises
        ------
        InputError
            If the file was changed since `start` was called, or the server fails for good.
        """
        try:
            return self._fetch(start, end)
        except GGUFError as error:
            raise InputError(f"{printable(self.url)}: {error}") from None

    def _fetch(self, start: int, end: int) -> bytes:
        data = bytearray()
        n_failed = 0
        while start + len(data) < self._end(end):
            stopping.check()
            before = len(data)
            try:
                self._try(start + before, end, data)
            except _FailedError as error:
                self._place = None
                enough = min(_PIECE, max(1, (self._end(end) - start - before) // 4))
                n_failed = 1 if len(data) - before >= enough else n_failed + 1
                if n_failed >= N_ATTEMPTS:
                    raise self._error(
                        f"cannot be read from position {start + len(data):,} on, after"
                        f" {n_failed} attempts: {error}"
                    ) from None
                _pause(max(error.wait, FIRST_WAIT * 2 ** (n_failed - 1) * random.uniform(1, 1.5)))
        return bytes(data)

    def _end(self, end: int) -> int:
        return end if self._identity is None else min(end, self._identity.n_bytes)

    def _try(self, start: int, end: int, data: bytearray) -> None:
        """Ask once, and append what comes."""
        headers = {"Range": f"bytes={start}-{self._end(end) - 1}"}
        if self._identity is not None and self._identity.stamp:
            headers["If-Range"] = self._identity.stamp
        url, own = self._place or self._address
        try:
            with self._connections.get(url, headers, own) as reply:
                end = self._check(reply, start, self._end(end))
                self._remember(reply.url)
                late = time.monotonic() + connections.TIMEOUT + (end - start) / _SLOWEST
                while start < end and (piece := reply.read(min(_PIECE, end - start))):
                    data += piece
                    start += len(piece)
                    self.n_fetched += len(piece)
                    if time.monotonic() > late:
                        raise _FailedError("it sends next to nothing")
        except ssl.SSLCertVerificationError as error:
            raise self._error(f"the server's certificate: {error.verify_message}") from None
        except socket.gaierror as error:
            if self._identity is None and error.errno == socket.EAI_NONAME:
                raise self._error("there is no server of that name") from None
            raise _FailedError(f"the server's name: {error.strerror}") from None
        except TimeoutError:
            raise _FailedError(f"no answer for {connections.TIMEOUT:g} seconds") from None
        except OSError as error:
            raise _FailedError(error.strerror or str(error) or type(error).__name__) from None
        except (http.client.HTTPException, ValueError) as error:
            raise _FailedError(
                f"no HTTP as it should be: {error or type(error).__name__}"
            ) from None
        if start < end:
            raise _FailedError("the connection was closed too early")

    def _check(self, reply: Reply, start: int, end: int) -> int:
        """Where the bytes of an answer end, if they are those that were asked for."""
        if reply.status in _FOR_GOOD and self._place is not None:
            raise _FailedError(f"{reply.status} {quoted(reply.reason)}")  # a link that has expired
        if reply.status in _FOR_GOOD:
            raise self._error(f"{_FOR_GOOD[reply.status]} ({reply.status}){self._advice(reply)}")
        if reply.status == 200:
            if self._identity is not None and _stamp(reply.headers) != self._identity.stamp:
                raise self._changed()
            if self._identity is not None:  # one of several servers may
                raise _FailedError("the whole file instead of a range")
            raise self._error(
                "the server sends no ranges of files but the whole; download the file, and name the"
                " copy"
            )
        if reply.status != 206:
            wait = reply.headers.get("Retry-After") or ""
            seconds = min(float(wait), _LONGEST_WAIT) if wait.isdecimal() else 0.0
            raise _FailedError(f"{reply.status} {quoted(reply.reason)}", seconds)
        said = reply.headers.get("Content-Range") or ""
        found = _RANGE.fullmatch(said.strip())
        if found is None:
            raise _FailedError(f"a range that says {quoted(said)}")
        if reply.headers.get("Content-Encoding") not in (None, "identity"):
            raise self._error("the server packs what it sends, which was not asked for")
        identity = Identity(int(found["total"]), _stamp(reply.headers))
        if self._identity is not None and identity != self._identity:
            raise self._changed()
        wanted = start, min(end, identity.n_bytes) - 1
        if (int(found["first"]), int(found["last"])) != wanted:
            raise _FailedError(f"asked for bytes {wanted[0]}-{wanted[1]}, it sends {quoted(said)}")
        self._identity = identity
        return wanted[1] + 1

    def _remember(self, url: str) -> None:
        """Ask at once where the server led to; such links are valid for a while."""
        asked = self._address
        if url not in (asked.url, self._place and self._place.url):
            own = asked.headers if urlsplit(url)[:2] == urlsplit(asked.url)[:2] else {}
            self._place = Address(url, own)

    def _advice(self, reply: Reply) -> str:
        if reply.status not in (401, 403):
            return ""
        if self.url.startswith("hf://"):
            return "; set HF_TOKEN to a token of somebody who may read it, and check the name"
        return "; no user and password are sent: download the file, and name the copy"

    def _changed(self) -> InputError:
        return InputError(f"{printable(self.url)}: was changed while it was read; start again")

    def _error(self, what: str) -> GGUFError:
        return GGUFError(what)


def first_bytes(url: str, most: int) -> tuple[Identity, bytes]:
    """What a file is now, and its first bytes, at most so many.

    Raises
    ------
    GGUFError
        If it cannot be read by ranges.
    """
    try:
        return RemoteFile(url).start(most)
    except GGUFError as error:
        raise GGUFError(f"{printable(url)}: {error}") from None


def _stamp(headers: Message) -> str:
    """What an answer says of the file, such that equal texts mean equal files."""
    etag = (headers.get("ETag") or "").strip()
    if etag and not etag.startswith("W/"):
        return etag
    date = (headers.get("Last-Modified") or "").strip()
    try:
        parsedate_to_datetime(date)
    except ValueError:
        return ""
    return date


def _pause(seconds: float) -> None:
    """Wait, unless somebody asks for the end."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        stopping.check()
        time.sleep(min(left, 0.1))
