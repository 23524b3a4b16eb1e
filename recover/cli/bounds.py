"""``recover bounds``."""

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from recover.cli._arguments import add_inputs, add_json
from recover.cli._sharing import add_sharing_arguments, carry_out

if TYPE_CHECKING:
    from recover.bounds.execute import BoundsResult, BoundStatistics
    from recover.bounds.plan import TensorPlan

NAME = "bounds"
SUMMARY = "Prove an interval for each weight of the original"


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the command's arguments."""
    add_inputs(parser)
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument(
        "-o", "--output", metavar="OUT", type=Path, help="safetensors file to write"
    )
    target.add_argument("--summary", action="store_true", help="print the table alone")
    parser.add_argument(
        "--dtype",
        choices=("f32", "f16"),
        default="f32",
        help="how bounds are stored (default: f32; f16 is rounded outward)",
    )
    parser.add_argument(
        "--tensors", metavar="REGEX", help="take only tensors in whose name this is found"
    )
    add_sharing_arguments(parser)
    add_json(parser)


def run(args: Namespace) -> int:
    """Do the work; the exit status."""
    from recover.bounds.execute import execute_bounds, execute_bounds_part
    from recover.bounds.plan import plan_bounds
    from recover.cli._console import print_json, progress_bar, warn
    from recover.cli._streams import complain
    from recover.errors import UsageError

    for option, value in (("--shard", args.shard), ("--scheduler", args.scheduler)):
        if value is not None and args.output is None:
            raise UsageError(f"{option} is for bounds that are written; name a file with -o")
    with progress_bar(args, "checking") as progress:
        plan = plan_bounds(
            args.inputs,
            args.output,
            dtype=args.dtype,
            tensors=args.tensors,
            checks=args.shard is None and args.scheduler is None,
            n_threads=args.threads,
            progress=progress,
        )
    is_checked = all(tensor.kept is not None for tensor in plan.tensors)
    warn(args, plan.warnings if is_checked else ())
    result = carry_out(args, "bounding", plan, execute_bounds, execute_bounds_part)
    if result is None:
        return 0
    warn(args, () if is_checked else result.plan.warnings)
    print_json(result.to_json()) if args.json else _print(result)
    for line in result.warnings:  # what was written has no bound where inputs contradict each other
        complain(f"recover: error: {line}")
    return 1 if result.warnings else 0


def _print(result: "BoundsResult") -> None:
    from recover.bounds.checks import condition_of
    from recover.cli._console import count, print_table, print_written
    from recover.cli._streams import say

    plan = result.plan
    rows = [
        (tensor.name, " ".join(tensor.types), *_figures(statistics), _checked(tensor))
        for tensor, statistics in zip(plan.tensors, result.tensors, strict=True)
    ]
    rows.append(("all", "", *_figures(result.total), ""))
    figures = ("weights", "two-sided", "mean width", "max error", "conflicts", "come back")
    print_table("", ("tensor:", "inputs:", *figures), rows)
    n_failed = sum(bool(result.failures(index)) for index in range(len(plan.tensors)))
    remark = f"; {n_failed} of {len(plan.tensors)} tensors are not certified" if n_failed else ""
    say(f"certified {condition_of(result.plan.models)}{remark}")
    if plan.output is not None:
        print_written(plan.output, plan.n_bytes, plan.n_weights, result.seconds)
        return
    speed = count(plan.n_weights / result.seconds)
    say(f"{count(plan.n_weights)} weights in {result.seconds:.2f} s ({speed} weights/s)")


def _checked(tensor: "TensorPlan") -> str:
    """The share of the blocks of each input that come back when they are encoded again."""
    shares = [
        f"{each.n_same / each.n_encoded:.0%}" if each.n_encoded else "-" for each in tensor.checks
    ]
    return " ".join(shares) or "-"


def _figures(statistics: "BoundStatistics") -> tuple[str, ...]:
    from recover.cli._console import count, optional

    return (
        count(statistics.n_weights),
        f"{statistics.two_sided:.2%}",
        optional(statistics.mean_width),
        optional(statistics.certified_max_error),
        str(statistics.n_conflicts),
    )
