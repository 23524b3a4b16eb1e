"""``recover merge``."""

from argparse import ArgumentParser, Namespace
from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from recover.cli._arguments import add_folder_arguments, add_inputs, add_json, n_bytes
from recover.cli._dry_run import dry_run
from recover.cli._sharing import add_sharing_arguments, carry_out
from recover.estimators import DEFAULT_METHOD, method_names, shipped_methods

if TYPE_CHECKING:
    from recover.merge.execute import MergeResult, TensorResult

NAME = "merge"
SUMMARY = "Merge several quantizations of one model into one better file"

_NO_GAIN = 0.9995  # prints as 1.000


class Methods:
    """Names of the estimators; those of other packages are looked for only if they matter."""

    def __contains__(self, name: object) -> bool:
        return name in shipped_methods() or name in method_names()

    def __iter__(self) -> Iterator[str]:
        return iter(method_names())


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the command's arguments."""
    add_inputs(parser)
    parser.add_argument(
        "-o",
        "--output",
        required=True,
        metavar="OUT",
        help="GGUF file to write; or a Hugging Face folder, if it is one or ends in /",
    )
    parser.add_argument(
        "--method",
        choices=Methods(),
        metavar="METHOD",
        help=f"how to combine the inputs: {', '.join(shipped_methods())} or one that another"
        f" package adds (default: {DEFAULT_METHOD})",
    )
    parser.add_argument(
        "--estimate",
        choices=("mean", "map"),
        default="mean",
        help="of the posterior, its mean or its mode (default: mean, the smaller error)",
    )
    parser.add_argument(
        "--calibration",
        metavar="FILE",
        type=Path,
        help="weights (--method linear) or densities (posterior) from recover calibrate",
    )
    parser.add_argument(
        "--net",
        metavar="FILE",
        type=Path,
        help="network from recover train-set (--method joint)",
    )
    parser.add_argument(
        "--simulate",
        metavar="N",
        type=int,
        help="take the densities from N of the model's own merged weights instead of random ones",
    )
    parser.add_argument(
        "--outtype",
        choices=("f16", "bf16", "f32", "q8_0"),
        default="f16",
        help="how the weights are stored (default: f16)",
    )
    parser.add_argument(
        "--snap",
        choices=("auto", "none", "bf16", "f16"),
        default="none",
        help="round to the numbers of the source's format (default: none, the smaller error)",
    )
    parser.add_argument(
        "--uncertainty",
        metavar="FILE",
        type=Path,
        help="write the standard deviation of every weight to this GGUF file",
    )
    parser.add_argument(
        "--tensors", metavar="REGEX", help="write only tensors in whose name this is found"
    )
    parser.add_argument(
        "--split-max-size",
        metavar="SIZE",
        type=n_bytes,
        help="write parts OUT-00001-of-0000N.gguf with at most so many bytes of weights each, like"
        " 500M, 2GB or 2GiB (a tensor that is larger has a part of its own)",
    )
    add_folder_arguments(parser)
    parser.add_argument(
        "--resume",
        action="store_true",
        help="keep what is complete after an interruption or error, and go on with what such a run"
        " has kept",
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help="go on although the inputs contradict each other; replace a model's folder that is"
        " there already",
    )
    add_sharing_arguments(parser)
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print the plan and what to expect, and write nothing",
    )
    add_json(parser)


def run(args: Namespace) -> int:
    """Do the work; the exit status."""
    from recover.cli._console import message, print_json, warn
    from recover.estimators.base import estimator
    from recover.merge.checks import check_relations
    from recover.merge.execute import execute_merge, execute_merge_part
    from recover.merge.plan import plan_merge

    plan = plan_merge(
        args.inputs,
        args.output,
        method=args.method or DEFAULT_METHOD,
        estimate=args.estimate,
        outtype=args.outtype,
        snap=args.snap,
        uncertainty=args.uncertainty,
        tensors=args.tensors,
        calibration=args.calibration,
        split_max_size=args.split_max_size,
        max_shard_size=args.max_shard_size,
        config=args.config,
        net=args.net,
    )
    if args.simulate is not None:
        from recover.merge.resimulate import with_simulated_densities

        plan = with_simulated_densities(plan, args.simulate)
    if args.verbose and (summary := estimator(plan.method).summary):
        message(args, f"{plan.method}: {summary}")
    warn(args, plan.warnings)
    if args.dry_run:
        if not args.force:
            check_relations(plan)
        return dry_run(args, plan)
    whole = partial(execute_merge, resume=args.resume, tell=partial(message, args))
    result = carry_out(args, "merging", plan, whole, execute_merge_part, force=args.force)
    if result is None:
        return 0
    warn(args, result.warnings)
    print_json(result.to_json()) if args.json else _print_result(result, verbose=args.verbose)
    return 0


def _print_result(result: "MergeResult", *, verbose: bool) -> None:
    from recover.cli._console import print_table, print_written
    from recover.cli._streams import say
    from recover.merge.savings import sentence

    plan = result.plan
    columns = ("action:", "inputs:", "output:", "tensors", "weights", "expected rmse", "conflicts")
    if verbose:
        rows = [(tensor.plan.name, *_row([tensor])) for tensor in result.tensors]
        print_table("", ("tensor:", *columns), rows)
    groups: defaultdict[tuple[str, ...], list[TensorResult]] = defaultdict(list)
    for tensor in result.tensors:
        groups[tensor.plan.action, *tensor.plan.types, tensor.plan.outtype].append(tensor)
    rows = [_row(tensors) for _, tensors in sorted(groups.items(), reverse=True)]
    names = " + ".join(model.path.name for model in plan.models)
    print_table(f"{names} ({plan.method})", columns, rows)
    ratio = result.expected_mse_ratio
    if ratio is not None:
        remark = "" if ratio < _NO_GAIN else ", so nothing is gained"
        say(f"expected mean square error: {ratio:.3f} of that of the best single input{remark}")
        for saving in result.savings:
            say(sentence(saving))
    if share := result.share_not_served:
        say(
            f"{plan.method} has nothing to add for the inputs of {share:.1%} of the estimated"
            f" weights: these are as {DEFAULT_METHOD} has them"
        )
    if n := result.n_without_claim:
        say(
            f"no claim is made of the error of {n:,} tensors: no input confines their weights, so"
            " that nothing tells how far codes that make up for each other's errors are off"
        )
    elif all(tensor.expected_rmse is None for tensor in result.tensors):
        say(
            "nothing to estimate: of every tensor an input is unquantized, or its original found,"
            " or only one takes part and has the output's type"
        )
    if result.n_exact:
        what = f"{result.n_exact:,} weights ({result.n_exact / result.n_weights:.2%})"
        say(f"certain: {what} are the only {plan.source_format} number within their bounds")
    if n_rounded := sum(tensor.n_rounded for tensor in result.tensors):
        share = n_rounded / sum(t.plan.n_weights for t in result.tensors if t.n_rounded)
        say(f"rounded: {n_rounded:,} weights ({share:.2%}) that a single input gives")
    if result.conflict_fraction:
        say(f"conflicts: the inputs contradict each other on {result.conflict_fraction:.2%}")
    print_written(plan.output, plan.n_bytes, result.n_weights, result.seconds, plan.n_parts)


def _row(tensors: "list[TensorResult]") -> tuple[str, ...]:
    """One line for tensors that are treated alike."""
    from recover.cli._console import count, optional

    plan = tensors[0].plan
    n_weights = sum(tensor.plan.n_weights for tensor in tensors)

    def mean(values: list[float | None]) -> float | None:
        known = [
            v * t.plan.n_weights for v, t in zip(values, tensors, strict=True) if v is not None
        ]
        return sum(known) / n_weights if known else None

    mse = mean([None if t.expected_rmse is None else t.expected_rmse**2 for t in tensors])
    return (
        plan.action,
        " ".join(plan.types),
        plan.outtype,
        str(len(tensors)),
        count(n_weights),
        optional(None if mse is None else mse**0.5),
        optional(mean([tensor.conflict_fraction for tensor in tensors]), ".2%"),
    )
