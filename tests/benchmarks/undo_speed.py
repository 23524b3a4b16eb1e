"""Speed and memory of undoing folders on a CPU, against a plain copy of the same bytes.

    python -m tests.benchmarks.undo_speed [--weights 1.2e9] [--folder DIR] [--threads 2] [KIND ...]

makes folders with that many random weights in each format, exports each in a process of its own,
and lets a plain copy do the same to the disk: read the bytes of the input, and write as many as the
output has. Both end when all of it is on the disk. Prints both times and their ratio, with the time
that the process takes to start and without it (which is what large models see); how long processors
were busy with each weight, without the start (which tells more where others use them, too); and the
largest anonymous memory. The inputs are in the page cache. KIND is one of
tests/support/plain_weights.py; by default one of each way of decoding.
"""

import argparse
import json
import os
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from tests.benchmarks.merge_speed import measure
from tests.support.hf_folders import write_arrays
from tests.support.plain_weights import FORMATS
from tests.support.quantized_folders import named

N_ROWS, N_COLUMNS = 4096, 8192
KINDS = (
    *("fp8", "int4", "int4 act-order", "int8", "gptq", "gptq act-order", "awq", "nf4"),
    *("llm.int8", "mxfp4", "nvfp4", "mlx", "hqq"),
)
_PART = 1 << 20


def make(folder: Path, kind: str, n_weights: float) -> int:
    """A folder of that many weights; how many they are."""
    n = max(1, round(n_weights / (N_ROWS * N_COLUMNS)))
    made = FORMATS[kind](np.random.default_rng(1), N_ROWS, N_COLUMNS)
    folder.mkdir()
    for i in range(n):
        path = folder / f"model-{i:05}.safetensors"
        write_arrays(path, named(f"model.layers.{i}.mlp.up_proj", made.arrays))
    whole = {"model_type": "llama", "torch_dtype": "bfloat16", "quantization_config": made.config}
    (folder / "config.json").write_text(json.dumps(whole))
    return n * N_ROWS * N_COLUMNS


def copy(source: Path, n_bytes: int, target: Path) -> float:
    """Seconds of reading files, and writing so many bytes, which are on the disk at the end."""
    files = sorted(each for each in source.iterdir() if each.suffix == ".safetensors")
    n_read = sum(each.stat().st_size for each in files)
    part, n_written = bytearray(os.urandom(_PART)), 0
    start = time.perf_counter()
    with target.open("wb", buffering=0) as output:
        for n_done, path in _starts(files):
            with path.open("rb", buffering=0) as file:
                while n := file.readinto(part):
                    n_done += n
                    while n_written < n_bytes * n_done // n_read:
                        n_left = n_bytes * n_done // n_read - n_written
                        n_written += output.write(memoryview(part)[:n_left])
        os.fsync(output.fileno())
    seconds = time.perf_counter() - start
    assert n_written == n_bytes
    return seconds


def _starts(files: list[Path]) -> list[tuple[int, Path]]:
    """Files, and how many bytes are in those in front of each."""
    sizes = [each.stat().st_size for each in files]
    return [(sum(sizes[:i]), path) for i, path in enumerate(files)]


def processor_seconds() -> float:
    """Of all processes that were waited for."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("kinds", nargs="*", default=KINDS, metavar="KIND")
    parser.add_argument("--weights", type=float, default=1.2e9)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    nothing = [sys.executable, "-c", "import recover.export.execute"]
    measure(nothing)
    before = processor_seconds()
    begin = min(measure(nothing)[0] for _ in range(args.rounds))
    busy_begin = (processor_seconds() - before) / args.rounds
    with tempfile.TemporaryDirectory(dir=args.folder) as scratch:
        for kind in args.kinds:
            source, out = Path(scratch, kind), Path(scratch, "out")
            n = make(source, kind, args.weights)
            command = [sys.executable, "-m", "recover", "export", str(source), "-o", str(out)]
            command += ["--threads", str(args.threads), "--quiet"]
            measure(command)  # compile, and fill the page cache
            ours, copies, busy, memory = [], [], [], 0.0
            for _ in range(args.rounds):
                n_bytes = sum(each.stat().st_size for each in out.glob("*.safetensors"))
                shutil.rmtree(out)
                before = processor_seconds()
                seconds, most = measure(command)
                busy.append(processor_seconds() - before)
                ours.append(seconds)
                memory = max(memory, most)
                copies.append(copy(source, n_bytes, Path(scratch, "copy")))
                Path(scratch, "copy").unlink()
            alone = max(min(ours) - begin, 1e-3)
            print(
                f"{kind}: {n / 1e6:.0f}M weights in {min(ours):.2f} s, {begin:.2f} s to start;"
                f" a copy in {min(copies):.2f} s: {min(copies) / min(ours):.2f} of its speed,"
                f" {min(copies) / alone:.2f} without the start;"
                f" processors busy for {(min(busy) - busy_begin) / n * 1e9:.2f} ns a weight;"
                f" {memory:.0f} MiB",
                flush=True,
            )
            shutil.rmtree(source)
            shutil.rmtree(out)


if __name__ == "__main__":
    main()
