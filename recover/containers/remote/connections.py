"""Connections to servers that stay open from one request to the next; redirections are followed."""

import http.client
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import NamedTuple
from urllib.parse import SplitResult, urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

from recover._version import __version__

TIMEOUT = 30.0
"""Seconds without an answer, or without a byte of it, after which a request has failed."""

_MOST_REDIRECTIONS = 10
_REDIRECTIONS = (301, 302, 303, 307, 308)
_MOST_IDLE = 8


class _Server(NamedTuple):
    scheme: str
    host: str
    port: int | None


class Reply:
    """An answer whose body is still to be read; use as a context."""

    def __init__(
        self, answer: http.client.HTTPResponse, give_back: Callable[[bool], None], url: str
    ) -> None:
        self.status = answer.status
        self.reason = answer.reason
        self.headers = answer.headers
        self.url = url
        self._answer = answer
        self._give_back = give_back

    def read(self, most: int) -> bytes:
        """The next bytes of the body, at most so many; none at its end."""
        return self._answer.read1(most)

    def __enter__(self) -> "Reply":
        return self

    def __exit__(self, *_: object) -> None:
        is_whole = self._answer.isclosed() or self._answer.length == 0
        self._answer.close()
        self._give_back(is_whole and not self._answer.will_close)


class Connections:
    """Open connections, by server; threads may share them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: dict[_Server, list[http.client.HTTPConnection]] = {}
        weakref.finalize(self, _close, self._idle)

    def get(self, url: str, headers: Mapping[str, str], own: Mapping[str, str]) -> Reply:
        """Ask for a URL, and for what it leads to.

        Parameters
        ----------
        url : str
            With http or https.
        headers : mapping of str to str
            Of the request.
        own : mapping of str to str
            Further ones, for the server of `url` alone (what lets in).

        Raises
        ------
        OSError, http.client.HTTPException
            If there is no answer.
        """
        first = _server(urlsplit(url))
        for _ in range(_MOST_REDIRECTIONS):
            parts = urlsplit(url)
            sent = {**headers, **own} if _server(parts) == first else headers
            reply = self._ask(parts, sent, url)
            to = reply.headers.get("Location")
            if reply.status not in _REDIRECTIONS or to is None:
                return reply
            with reply:  # a short text for people
                while reply.read(1 << 16):
                    pass
            url = urljoin(url, to)
            if urlsplit(url).scheme not in ("http", "https"):
                raise http.client.HTTPException(f"it leads to {url!r}")
        raise http.client.HTTPException("it leads from one URL to the next without an end")

    def _ask(self, parts: SplitResult, headers: Mapping[str, str], url: str) -> Reply:
        server = _server(parts)
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        if server.scheme == "http" and _proxy(server) is not None:
            path = url
        sent = {"User-Agent": f"recover/{__version__}", "Accept-Encoding": "identity", **headers}
        for is_new in (False, True):
            connection = _connect(server) if is_new else self._take(server)
            if connection is None:
                continue
            try:
                connection.request("GET", path, headers=sent)
                answer = connection.getresponse()
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                is_stale = isinstance(error, ConnectionError | http.client.BadStatusLine)
                if is_new or not is_stale:  # a server may close a connection that waits
                    raise
                continue
            except BaseException:
                connection.close()
                raise
            return Reply(answer, partial(self._give, server, connection), url)
        raise AssertionError

    def _take(self, server: _Server) -> http.client.HTTPConnection | None:
        with self._lock:
            idle = self._idle.get(server)
            return idle.pop() if idle else None

    def _give(self, server: _Server, connection: http.client.HTTPConnection, again: bool) -> None:
        with self._lock:
            idle = self._idle.setdefault(server, [])
            if again and len(idle) < _MOST_IDLE:
                idle.append(connection)
                return
        connection.close()


def _close(idle: Mapping[_Server, Iterable[http.client.HTTPConnection]]) -> None:
    for connections in idle.values():
        for connection in connections:
            connection.close()


def _server(parts: SplitResult) -> _Server:
    return _Server(parts.scheme, parts.hostname or "", parts.port)


def _proxy(server: _Server) -> SplitResult | None:
    """What the environment says of the way to a server (HTTP_PROXY, HTTPS_PROXY, NO_PROXY)."""
    found = getproxies().get(server.scheme)
    if not found or proxy_bypass(server.host):
        return None
    return urlsplit(found if "://" in found else f"http://{found}")


def _connect(server: _Server) -> http.client.HTTPConnection:
    proxy = _proxy(server)
    is_safe = server.scheme == "https"
    kind = http.client.HTTPSConnection if is_safe else http.client.HTTPConnection
    if proxy is None:
        return kind(server.host, server.port, timeout=TIMEOUT)
    connection = kind(proxy.hostname or "", proxy.port, timeout=TIMEOUT)
    if is_safe:
        connection.set_tunnel(server.host, server.port or 443)
    return connection
