"""Speed and memory of a whole merge, against a straightforward script on gguf-py.

    python -m tests.benchmarks.merge_speed [--weights 200e6] [--folder DIR]... [--method linear]
        [--json FILE]

makes three K-quant files of that many weights (the rows of the package's small model, again and
again), merges them in a process of its own with two threads, does the same with gguf-py, and prints
both speeds, their ratio and the largest anonymous memory (mapped input pages do not count). The
files are in the page cache. Name several folders to compare file systems.
"""

import argparse
import contextlib
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from recover.containers.gguf.header import encode_header, place_tensors
from recover.containers.gguf.reader import open_gguf
from recover.execution.output import OutputFile
from tests.benchmarks.record import write_record

DATA = Path(__file__).parents[2] / "recover" / "data"
NAMES = ("Q5_K_M", "Q4_K_M", "Q2_K")

SCRIPT = """
import sys
import gguf, numpy as np
*inputs, output = sys.argv[1:]
readers = [gguf.GGUFReader(path) for path in inputs]
writer = gguf.GGUFWriter(output, "llama")
for tensors in zip(*(reader.tensors for reader in readers)):
    values = [gguf.quants.dequantize(t.data, t.tensor_type) for t in tensors]
    mean = sum(values) / len(values)
    mean = mean.reshape(tensors[0].shape.tolist()[::-1])
    writer.add_tensor(tensors[0].name, mean if mean.ndim == 1 else mean.astype(np.float16))
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
"""


def grow(source: Path, target: Path, n_weights: float) -> int:
    """Write a model whose matrices have a model's rows again and again; the number of weights."""
    model = open_gguf(source)
    times = -(-int(n_weights) // model.n_weights)
    tensors = [(t, times if len(t.dims) > 1 else 1) for t in model.tensors.values()]
    alignment = model.header.alignment
    shapes = [(t.name, (*t.dims[:-1], t.dims[-1] * n), t.type) for t, n in tensors]
    placed, n_bytes = place_tensors(shapes, alignment)
    header = encode_header([kv.span for kv in model.metadata.values()], placed, alignment)
    with OutputFile(target, len(header) + n_bytes) as output:
        output.write_at(0, header)
        for (tensor, n), info in zip(tensors, placed, strict=True):
            for i in range(n):
                start = len(header) + info.offset + i * tensor.raw.size
                output.write_at(start, tensor.raw.data)
    return sum(info.n_weights for info in placed)


class MemoryWatch(threading.Thread):
    """Looks at the anonymous memory of a process until that ends."""

    def __init__(self, process: subprocess.Popen[Any]) -> None:
        super().__init__()
        self._process = process
        self._largest = 0.0

    def run(self) -> None:
        """See `watch_memory`."""
        status, lines = Path(f"/proc/{self._process.pid}/status"), list[str]()
        while self._process.poll() is None:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
                lines = status.read_text().splitlines()
            for line in lines:
                if line.startswith("RssAnon:"):
                    self._largest = max(self._largest, float(line.split()[1]) / 1024)
            time.sleep(0.01)

    def largest(self) -> float:
        """In MiB, when the process has ended."""
        self.join()
        return self._largest


def watch_memory(process: subprocess.Popen[Any]) -> MemoryWatch:
    """Begin to watch a process's anonymous memory."""
    watch = MemoryWatch(process)
    watch.start()
    return watch


def measure(command: list[str]) -> tuple[float, float]:
    """Seconds, and the largest anonymous memory in MiB."""
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        watcher = watch_memory(process)
        status = process.wait()
        seconds = time.perf_counter() - start
    if status:
        raise SystemExit(f"{command} failed")
    return seconds, watcher.largest()


def compare(folder: Path, n_weights: float, method: str, rounds: int) -> list[dict[str, Any]]:
    """Seconds and largest anonymous memory of each run of either program."""
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        inputs = [Path(scratch) / f"{name}.gguf" for name in NAMES]
        sources = [DATA / f"tiny-llama-3m-{name}.gguf" for name in NAMES]
        n = {grow(s, t, n_weights) for s, t in zip(sources, inputs, strict=True)}.pop()
        output = str(Path(scratch) / "out.gguf")
        paths = [str(path) for path in inputs]
        ours = [sys.executable, "-m", "recover", "merge", *paths, "-o", output]
        ours += ["--method", method, "--threads", "2"]
        theirs = [sys.executable, "-c", SCRIPT, *paths, output]
        measure(ours)  # compile, and fill the page cache
        print(f"{folder} ({shutil.disk_usage(folder).free >> 30} GiB free), {n / 1e6:.0f}M weights")
        figures: list[dict[str, Any]] = []
        for _ in range(rounds):
            for name, command in (("recover", ours), ("gguf-py", theirs)):
                seconds, memory = measure(command)
                figure = {"program": name, "n_weights": n, "seconds": seconds, "memory_mib": memory}
                figures.append(figure | {"method": method, "folder": str(folder)})
                print(f"  {name}: {seconds:6.2f} s, {n / seconds / 1e6:6.1f}M weights/s,", end=" ")
                print(f"{memory:5.0f} MiB")
        best = {
            name: min(each["seconds"] for each in figures if each["program"] == name)
            for name in ("recover", "gguf-py")
        }
        print(f"  {method}: {best['gguf-py'] / best['recover']:.1f} times as fast as gguf-py")
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--weights", type=float, default=200e6)
    parser.add_argument("--folder", type=Path, action="append")
    parser.add_argument("--method", default="linear")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    args = parser.parse_args()
    figures = []
    for folder in args.folder or [Path(tempfile.gettempdir())]:
        figures += compare(folder, args.weights, args.method, args.rounds)
    if args.json:
        write_record(args.json, "merge_speed", figures)


if __name__ == "__main__":
    main()
