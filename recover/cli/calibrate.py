"""``recover calibrate``."""

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from recover.cli._arguments import add_inputs, add_json, add_output, add_truth

if TYPE_CHECKING:
    from recover.calibration.weights import Calibration, Combination, Gain

NAME = "calibrate"
SUMMARY = "Fit how to combine quantizations, on a model whose original is known"


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the command's arguments."""
    add_inputs(parser)
    add_truth(parser)
    add_output(parser, "FILE", "JSON file")
    parser.add_argument(
        "--by", choices=("role",), help="fit weights for each role of tensors as well"
    )
    parser.add_argument(
        "--depth-quantiles",
        metavar="N",
        type=int,
        default=1,
        help="fit weights for each Nth of the layers as well",
    )
    parser.add_argument(
        "--unconstrained",
        action="store_true",
        help="allow weights that are negative or do not add up to 1",
    )
    parser.add_argument(
        "--leave-out",
        choices=("tensor", "layer"),
        default="tensor",
        help="what is left out of the fits that measure the gain (default: tensor)",
    )
    add_json(parser)


def run(args: Namespace) -> int:
    """Do the work; the exit status."""
    import time

    from recover.calibration.fit import calibrate
    from recover.cli._console import print_json, progress_bar, warn
    from recover.execution.output import check_output_path

    start = time.perf_counter()
    read = [*args.inputs, args.truth]
    check_output_path(args.output, read)
    with progress_bar(args, "comparing with the truth") as progress:
        calibration = calibrate(
            args.inputs,
            args.truth,
            constrained=not args.unconstrained,
            by_role=args.by == "role",
            n_depths=args.depth_quantiles,
            leave_out=args.leave_out,
            n_threads=args.threads,
            progress=progress,
        )
    calibration.save(args.output, read)
    warn(args, calibration.warnings)
    seconds = time.perf_counter() - start
    if args.json:
        document = calibration.to_json()
        print_json({"output": str(args.output), "seconds": seconds, "calibration": document})
    else:
        _print_result(calibration, args.output, seconds)
    return 0


def _print_result(calibration: "Calibration", output: Path, seconds: float) -> None:
    from recover.cli._console import print_table
    from recover.cli._streams import say

    names = " + ".join(source.name for source in calibration.inputs)
    columns = ("types:", "role:", "depth:", "tensors", "weights", "linear", "fitted", "held out")
    print_table(
        f"{names} on {calibration.truth.name}: mean square error relative to the best input alone",
        (*columns, "95% interval", "weights of the inputs:"),
        [_row(each) for each in calibration.combinations],
    )
    if calibration.held_out is not None and calibration.uncalibrated is not None:
        say(
            f"{calibration.left_out}s that took no part in the fit:"
            f" {calibration.held_out.mse_ratio:.4f}{_interval(calibration.held_out, ' ({})')},"
            f" without calibration {calibration.uncalibrated.mse_ratio:.4f}"
        )
    densities = [each.type for each in calibration.densities]
    say(f"densities: {', '.join(densities) or 'none'}")
    say(f"wrote {output} in {seconds:.2f} s")


def _row(combination: "Combination") -> tuple[str, ...]:
    from recover.cli._console import count

    held_out = combination.held_out
    return (
        " ".join(combination.types),
        combination.role or "all",
        "all" if combination.depth is None else str(combination.depth),
        str(combination.n_tensors),
        count(combination.n_weights),
        f"{combination.uncalibrated.mse_ratio:.4f}",
        f"{combination.fitted.mse_ratio:.4f}",
        "-" if held_out is None else f"{held_out.mse_ratio:.4f}",
        "-" if held_out is None else _interval(held_out, "{}") or "-",
        " ".join(f"{weight:.4f}" for weight in combination.weights),
    )


def _interval(gain: "Gain", layout: str) -> str:
    """A 95% interval, or nothing where there is none."""
    if gain.ci95 is None:
        return ""
    return layout.format(f"{gain.ci95[0]:.4f} to {gain.ci95[1]:.4f}")
