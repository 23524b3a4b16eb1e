"""Speed of this working tree against another one's, in turns: which is the faster, and how surely.

    python -m tests.benchmarks.in_turns OTHER_TREE [--benchmark core_speed] [--rounds 40]
        [--json FILE] [ARGUMENT ...]

runs a benchmark that uses `print_speeds` (`core_speed`, `bounds_speed`, `joint --speed`) once in
each tree, with this Python and all other arguments. The processes take turns, round by round, so
that whatever else the machine does meets both alike. Prints, of each thing that is measured, the
median of weights per second of processor time in either tree; and of the ratios of neighbouring
rounds the median, the quartiles, and the limits within which the median lies with 95% confidence.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks.record import write_record

_SIGN = "in turns: "
_WORKER = """
import importlib, json, sys, time
sign, name, *sys.argv[1:] = sys.argv[1:]
module = importlib.import_module(f"tests.benchmarks.{name}")

def tell(what):
    sys.__stdout__.write(sign + json.dumps(what) + chr(10))
    sys.__stdout__.flush()

def in_turns(run, n_weights, args):
    tell({"ready": n_weights})
    while sys.stdin.readline().strip() == "go":
        wall, processor = time.perf_counter(), time.process_time()
        run()
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
        tell({"wall": wall, "processor": processor})
    return []

module.print_speeds = in_turns
module.main()
tell({"end": True})
"""


class Side:
    """A benchmark in one of the trees."""

    def __init__(self, tree: Path, benchmark: str, arguments: list[str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", _WORKER, _SIGN, benchmark, *arguments],
            cwd=tree,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def hear(self) -> dict[str, Any]:
        """What it tells next."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(_SIGN):
                told: dict[str, Any] = json.loads(line[len(_SIGN) :])
                return told
        raise SystemExit(f"the benchmark ended early, with status {self.process.wait()}")

    def say(self, word: str) -> None:
        """Let it go on."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{word}\n")
        self.process.stdin.flush()


def median_limits(values: np.ndarray[Any, np.dtype[np.float64]]) -> tuple[float, float]:
    """Within which the median of all such values lies, with 95% confidence: order statistics."""
    n, ordered = values.size, np.sort(values)
    reach = 0.98 * np.sqrt(n)
    low, high = max(0, int(np.floor(n / 2 - reach))), min(n - 1, int(np.ceil(n / 2 + reach)))
    return float(ordered[low]), float(ordered[high])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("other", type=Path)
    parser.add_argument("--benchmark", default="core_speed")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    args, others = parser.parse_known_args()
    trees = {"other": args.other, "this": Path(__file__).parents[2]}
    sides = {name: Side(tree, args.benchmark, others) for name, tree in trees.items()}
    figures: list[dict[str, Any]] = []
    while "ready" in (told := {name: side.hear() for name, side in sides.items()})["this"]:
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        for i in range(args.rounds):
            for name in sorted(sides, reverse=i % 2 == 1):
                sides[name].say("go")
                seconds[name].append(sides[name].hear()["processor"])
        rates = {name: told[name]["ready"] / np.array(each) for name, each in seconds.items()}
        ratios = rates["this"] / rates["other"]
        low, high = median_limits(ratios)
        quartiles = np.percentile(ratios, [25, 75])
        medians = {name: float(np.median(each)) / 1e6 for name, each in rates.items()}
        print(
            f"{args.rounds} rounds of {told['this']['ready'] / 1e6:.3g}M weights:"
            f" {medians['other']:.4g}M/s there, {medians['this']:.4g}M/s here;"
            f" ratio {np.median(ratios):.3f} (median within {low:.3f} to {high:.3f},"
            f" quartiles {quartiles[0]:.3f} to {quartiles[1]:.3f})",
            flush=True,
        )
        figures.append({"medians": medians, "ratios": ratios.tolist()})
        for side in sides.values():
            side.say("next")
    if args.json:
        write_record(args.json, "in_turns", figures)


if __name__ == "__main__":
    main()
