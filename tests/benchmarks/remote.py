"""What `inspect` reads of a large file on a server.

    python -m tests.benchmarks.remote [--model 70b] [--inputs 1] [--folder DIR]

writes files as `tests.benchmarks.large_plan` does, serves them on this machine, and prints the
bytes that were sent, the requests, and the seconds.
"""

import argparse
import contextlib
import io
import mmap
import tempfile
import time
from pathlib import Path

from recover.cli import main as recover
from tests.benchmarks.large_plan import KINDS, MODELS, write_sparse
from tests.support.http_files import served


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="70b", choices=list(MODELS))
    parser.add_argument("--inputs", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    args = parser.parse_args()
    architecture, shapes = MODELS[args.model]
    with tempfile.TemporaryDirectory(dir=args.folder) as scratch, served({}) as server:
        for i in range(args.inputs):
            path = Path(scratch, f"{i}.gguf")
            write_sparse(path, architecture, shapes, KINDS[(i + 1) % len(KINDS)])
            with path.open("rb") as file:
                server.content[f"/{i}.gguf"] = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        start = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()):
            status = recover(["inspect", *(server.url + name for name in server.content), "--json"])
        seconds = time.perf_counter() - start
        size = sum(map(len, server.content.values()))
        print(
            f"inspect of {args.inputs} files of {size:,} bytes: status {status},"
            f" {server.n_sent:,} bytes in {len(server.requests):,} requests, {seconds:.1f} s"
        )


if __name__ == "__main__":
    main()
