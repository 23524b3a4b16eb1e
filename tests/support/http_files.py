"""A server of files by ranges that can be told to fail."""

import mmap
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Content = bytes | mmap.mmap
Fault = Callable[["Handler", Content, int, int], bool]
"""Sends something else than bytes ``start`` to ``end`` of a file; False: all is to be as usual."""


@dataclass
class Files:
    """What a server has, what goes wrong, and what it was asked for."""

    url: str = ""
    content: dict[str, Content] = field(default_factory=dict)
    fault: Fault | None = None
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    n_sent: int = 0
    over: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, n: int) -> None:
        """Count bytes that were sent."""
        with self.lock:
            self.n_sent += n


class Handler(BaseHTTPRequestHandler):
    """Answers GET requests with a range."""

    protocol_version = "HTTP/1.1"
    files: Files

    def do_GET(self) -> None:
        self.files.requests.append((self.path, dict(self.headers)))
        whole = self.files.content.get(self.path)
        if whole is None:
            return self.refuse(404)
        start, _, last = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
        end = min(int(last or len(whole)) + 1, len(whole))
        if int(start) >= len(whole):
            return self.refuse(416)
        if self.headers.get("If-Range", tag(whole)) != tag(whole):
            return self.send(200, whole[:], {"ETag": tag(whole)})
        if self.files.fault is not None and self.files.fault(self, whole, int(start), end):
            return None
        return self.send_range(whole, int(start), end)

    def send_range(self, whole: Content, start: int, end: int, *, shift: int = 0) -> None:
        """Send a range; `shift` is how far off it is."""
        start, end = start + shift, end + shift
        said = f"bytes {start}-{end - 1}/{len(whole)}"
        self.send(206, whole[start:end], {"Content-Range": said, "ETag": tag(whole)})

    def send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        """Send an answer."""
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        self.write(body)

    def write(self, body: bytes) -> None:
        """Send bytes of a body; whoever asked may be gone.

        They are counted before, as whoever has them all may look at once.
        """
        self.files.count(len(body))
        try:
            self.wfile.write(body)
        except OSError:
            self.close_connection = True
            self.files.count(-len(body))

    def refuse(self, status: int) -> None:
        """Send no file."""
        self.send(status, b"no", {})

    def log_message(self, *_: object) -> None:
        pass


def tag(content: Content) -> str:
    """The ETag of a file; of its beginning and end, for there are files with large holes."""
    told = content[: 1 << 16] + content[-(1 << 16) :]
    return f'"{sha256(told).hexdigest()[:16]}"'


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, *_: object) -> None:
        pass


@contextmanager
def served(content: dict[str, Content]) -> Iterator[Files]:
    """A server on this machine; paths begin with a slash."""
    files = Files(content=content)
    server = _Server(("127.0.0.1", 0), type("Own", (Handler,), {"files": files}))
    files.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield files
    finally:
        files.over.set()
        server.shutdown()
        server.server_close()
        thread.join()
