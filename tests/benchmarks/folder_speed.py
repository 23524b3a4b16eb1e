"""Speed and memory of a whole merge of a Hugging Face folder with a GGUF file, on one core.

    python -m tests.benchmarks.folder_speed [--weights 200e6] [--rounds 2] [--json FILE] [NAME...]

makes a folder of that many weights in each format of `FORMATS` (a random matrix's rows, again and
again) and a GGUF file beside it, merges them by ``recover merge`` in a process of its own with one
thread, and prints weights by second of processor time and of the clock, and the largest anonymous
memory. The same of two GGUF files comes first, to compare with.
"""

import argparse
import json
import resource
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from recover.quants import F32Array
from tests.benchmarks.merge_speed import measure
from tests.benchmarks.record import write_record
from tests.support.encoders import bitsandbytes, fp8
from tests.support.foreign_modules import Array, heavy_tailed, rounded
from tests.support.gguf_files import Stored, stored, write_gguf
from tests.support.hf_folders import write_arrays

WIDTH = 4096
_N_ROWS = 512  # that are quantized; the others are the same again
_STATE = "weight.quant_state.bitsandbytes__nf4"
_CONFIG = {
    "model_type": "llama",
    "hidden_size": WIDTH,
    "intermediate_size": WIDTH,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
}


def _nf4(w: F32Array, times: int) -> dict[str, Array]:
    arrays = bitsandbytes.encode(w)
    told = json.loads(bytes(arrays.pop(_STATE)))
    told["shape"][0] *= times
    state = {_STATE: np.frombuffer(json.dumps(told).encode(), np.uint8)}
    repeated = ("weight", "weight.absmax", "weight.nested_absmax")
    return state | {
        leaf: _again(array, times) if leaf in repeated else array for leaf, array in arrays.items()
    }


def _fp8(w: F32Array, times: int) -> dict[str, Array]:
    return {leaf: _again(array, times) for leaf, array in fp8.encode(w).items()}


def _again(array: Array, times: int) -> Array:
    return np.tile(array, (times, *(1,) * (array.ndim - 1)))


FORMATS: dict[str, tuple[Callable[[F32Array, int], Mapping[str, Array]], str]] = {
    "FP8": (_fp8, "Q6_K"),
    "NF4": (_nf4, "Q4_K"),
}
"""What makes the arrays of a module, and the type of GGUF beside it."""


def _write_folder(path: Path, arrays: Mapping[str, Array], n_layers: int) -> Path:
    path.mkdir()
    for i in range(n_layers):
        stem = f"model.layers.{i}.mlp.down_proj"
        own = {f"{stem}.{leaf}": array for leaf, array in arrays.items()}
        write_arrays(path / f"model-{i}.safetensors", own)
    (path / "config.json").write_text(json.dumps(_CONFIG | {"num_hidden_layers": n_layers}))
    return path


def _write_model(path: Path, kind: str, w: F32Array, times: int, n_layers: int) -> Path:
    again = Stored(kind, _again(stored(kind, w).rows, times))
    return write_gguf(path, {f"blk.{i}.ffn_down.weight": again for i in range(n_layers)})


def _run(inputs: list[Path], output: Path, n_weights: int) -> dict[str, float]:
    command = [sys.executable, "-m", "recover", "merge", *map(str, inputs), "-o", str(output)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds, memory = measure([*command, "--threads", "1", "-q", "--json"])
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    output.unlink()
    return {
        "per_second": n_weights / seconds,
        "per_processor_second": n_weights / processor,
        "memory_mib": memory,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="formats; all if left out")
    parser.add_argument("--weights", type=float, default=200e6)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    args = parser.parse_args()
    n_layers = max(1, round(args.weights / WIDTH**2))
    times, n_weights = WIDTH // _N_ROWS, n_layers * WIDTH**2
    w = rounded(heavy_tailed(np.random.default_rng(0), _N_ROWS, WIDTH), "BF16")
    figures: dict[str, Any] = {}
    for name in args.names or FORMATS:
        make, kind = FORMATS[name]
        with tempfile.TemporaryDirectory() as scratch:
            model = _write_model(Path(scratch) / f"{kind}.gguf", kind, w, times, n_layers)
            other = _write_model(Path(scratch) / "Q5_K.gguf", "Q5_K", w, times, n_layers)
            folder = _write_folder(Path(scratch) / name, make(w, times), n_layers)
            for title, inputs in (
                (f"Q5_K + {kind}", [model, other]),
                (f"{name} + {kind}", [model, folder]),
            ):
                output = Path(scratch) / "out.gguf"
                _run(inputs, output, n_weights)  # compile, and fill the page cache
                for _ in range(args.rounds):
                    figures[title] = found = _run(inputs, output, n_weights)
                    print(
                        f"{title:12} {found['per_processor_second'] / 1e6:6.1f}M weights by second"
                        f" of processor time, {found['per_second'] / 1e6:6.1f}M of the clock,"
                        f" {found['memory_mib']:4.0f} MiB",
                        flush=True,
                    )
    if args.json:
        write_record(args.json, "folder_speed", figures)


if __name__ == "__main__":
    main()
