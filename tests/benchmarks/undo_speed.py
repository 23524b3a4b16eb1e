"""Speed and memory of undoing folders on a CPU, against a plain copy of the bytes that are written.

    python -m tests.benchmarks.undo_speed [--weights 400e6] [--folder DIR] [--threads 2] [KIND ...]

makes folders with that many random weights in each format, exports each in a process of its own,
and copies the result. Prints both times, their ratio, how long processors were busy with the export
(which tells more where others use them, too) and the largest anonymous memory. The files are in the
page cache.
"""

import argparse
import json
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks.merge_speed import measure
from tests.support.foreign_modules import Array
from tests.support.hf_folders import write_arrays
from tests.support.quantized_folders import COMPRESSED, gptq_config

N_ROWS, N_COLUMNS = 4096, 8192
Made = tuple[dict[str, Array], dict[str, Any]]


def fp8(rng: np.random.Generator) -> Made:
    import ml_dtypes

    weight = rng.integers(0, 120, (N_ROWS, N_COLUMNS), np.uint8).view(ml_dtypes.float8_e4m3fn)
    scales = rng.uniform(1e-4, 2e-4, (N_ROWS // 128, N_COLUMNS // 128)).astype(np.float32)
    config = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    arrays = {"weight": weight, "weight_scale_inv": scales}
    return arrays, {"quantization_config": config}


def int4(rng: np.random.Generator) -> Made:
    import ml_dtypes

    packed = rng.integers(-(1 << 31), 1 << 31, (N_ROWS, N_COLUMNS // 8)).astype(np.int32)
    scales = rng.uniform(1e-3, 2e-3, (N_ROWS, N_COLUMNS // 32)).astype(ml_dtypes.bfloat16)
    shape = np.array([N_ROWS, N_COLUMNS], np.int64)
    arrays = {"weight_packed": packed, "weight_scale": scales, "weight_shape": shape}
    return arrays, dict(COMPRESSED)


def gptq(rng: np.random.Generator) -> Made:
    words = rng.integers(-(1 << 31), 1 << 31, (N_COLUMNS // 8, N_ROWS)).astype(np.int32)
    zeros = np.full((N_COLUMNS // 128, N_ROWS // 8), 0x77777777, np.int32)
    scales = rng.uniform(1e-3, 2e-3, (N_COLUMNS // 128, N_ROWS)).astype(np.float16)
    groups = np.arange(N_COLUMNS, dtype=np.int32) // 128
    arrays: dict[str, Array] = {
        "qweight": words,
        "qzeros": zeros,
        "scales": scales,
        "g_idx": groups,
    }
    return arrays, gptq_config()


KINDS: dict[str, Callable[[np.random.Generator], Made]] = {"fp8": fp8, "int4": int4, "gptq": gptq}


def make(folder: Path, kind: str, n_weights: float) -> int:
    """A folder of that many weights; how many they are."""
    n = max(1, round(n_weights / (N_ROWS * N_COLUMNS)))
    arrays, config = KINDS[kind](np.random.default_rng(1))
    folder.mkdir()
    for i in range(n):
        module = f"model.layers.{i}.mlp.up_proj"
        own = {f"{module}.{leaf}": each for leaf, each in arrays.items()}
        write_arrays(folder / f"model-{i:05}.safetensors", own)
    whole = {"model_type": "llama", "torch_dtype": "bfloat16", **config}
    (folder / "config.json").write_text(json.dumps(whole))
    return n * N_ROWS * N_COLUMNS


def copy(source: Path, target: Path) -> float:
    """Seconds of a plain copy that is on the disk at the end."""
    start = time.perf_counter()
    shutil.copytree(source, target)
    for path in target.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    return time.perf_counter() - start


def processor_seconds() -> float:
    """Of all processes that were waited for."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("kinds", nargs="*", default=list(KINDS))
    parser.add_argument("--weights", type=float, default=400e6)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as scratch:
        for kind in args.kinds:
            source, out = Path(scratch, kind), Path(scratch, "out")
            n = make(source, kind, args.weights)
            command = [sys.executable, "-m", "recover", "export", str(source), "-o", str(out)]
            command += ["--threads", str(args.threads), "--force"]
            measure(command)  # compile, and fill the page cache
            ours, copies, busy, memory = [], [], [], 0.0
            for _ in range(args.rounds):
                before = processor_seconds()
                seconds, most = measure(command)
                busy.append(processor_seconds() - before)
                ours.append(seconds)
                memory = max(memory, most)
                copies.append(copy(out, Path(scratch, "copy")))
                shutil.rmtree(Path(scratch, "copy"))
            print(
                f"{kind}: {n / 1e6:.0f}M weights in {min(ours):.2f} s (processors busy for"
                f" {min(busy):.2f} s), a copy in {min(copies):.2f} s:"
                f" {min(copies) / min(ours):.2f} of its speed; {memory:.0f} MiB"
            )
            shutil.rmtree(source)
            shutil.rmtree(out)


if __name__ == "__main__":
    main()
