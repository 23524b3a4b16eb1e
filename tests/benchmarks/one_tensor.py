"""What one tensor of a large model costs from Python, in a process of its own.

    python -m tests.benchmarks.one_tensor [--weights 480e6] [--rounds 3] [--method posterior]
        [--types Q8_0 Q6_K]

makes three K-quant files of that many weights, or files of other types, and calls
`recover.estimate` and `recover.bounds` for a tensor of each size. Printed are seconds of wall and
of processor time after the import, of the first call (which loads numba and machine code) and of a
second one.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import recover
from tests.benchmarks.merge_speed import DATA, NAMES, grow
from tests.support.models import TINY

SCRIPT = """
import resource, sys, time
import recover
recover.estimate, recover.bounds
*paths, name, method = sys.argv[1:]
def used():
    own = resource.getrusage(resource.RUSAGE_SELF)
    return own.ru_utime + own.ru_stime
for what in ("estimate", "estimate again", "bounds"):
    wall, processor = time.perf_counter(), used()
    if what == "bounds":
        found = recover.bounds(paths, name)
    else:
        found = recover.estimate(paths, name, method)
    seconds = f"{time.perf_counter() - wall:.2f} s, {used() - processor:.2f} s of processor time"
    print(f"  {what} {name}: {seconds}", found.lower.size)
"""


def main() -> None:
    """Make the files, and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=float, default=480e6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--method", default="posterior")
    parser.add_argument("--types", nargs="+", metavar="TYPE", help="default: K_M files")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        paths = [Path(scratch) / f"{name}.gguf" for name in args.types or NAMES]
        sources = [DATA / f"tiny-llama-3m-{name}.gguf" for name in NAMES]
        if args.types:
            sources = [Path(scratch) / f"small-{name}.gguf" for name in args.types]
            for name, path in zip(args.types, sources, strict=True):
                recover.execute_quantize(recover.plan_quantize(TINY, path, name))
        n = {grow(s, t, args.weights) for s, t in zip(sources, paths, strict=True)}.pop()
        print(f"{len(paths)} files of {n / 1e6:.0f}M weights")
        for name in ("blk.0.attn_k.weight", "blk.1.ffn_up.weight"):
            for _ in range(args.rounds):
                words = [*map(str, paths), name, args.method]
                subprocess.run([sys.executable, "-c", SCRIPT, *words], check=True)


if __name__ == "__main__":
    main()
