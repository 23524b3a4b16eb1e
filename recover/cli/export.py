"""``recover export``."""

from argparse import ArgumentParser, Namespace
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from recover.cli._arguments import add_folder_arguments, add_json, add_output
from recover.cli._sharing import add_sharing_arguments, carry_out

if TYPE_CHECKING:
    from recover.export.execute import ExportResult
    from recover.export.plan import ExportedTensor
    from recover.quants.rounding import Rounding

    Exported = tuple[ExportedTensor, Rounding]

NAME = "export"
SUMMARY = "Write a model as a Hugging Face folder of plain weights"


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "model", metavar="MODEL", type=Path, help="GGUF file or Hugging Face folder"
    )
    add_output(parser, "FOLDER", "folder")
    parser.add_argument(
        "--outtype",
        choices=("bf16", "f16", "f32"),
        help="how weights are stored (default: as the original's were, where that is known, else"
        " bf16); vectors that it does not hold exactly stay f32",
    )
    add_folder_arguments(parser)
    parser.add_argument(
        "--names",
        choices=("huggingface", "gguf"),
        default="huggingface",
        help="how tensors are called and laid out (default: huggingface)",
    )
    parser.add_argument(
        "--force", action="store_true", help="replace a model's folder that is there already"
    )
    add_sharing_arguments(parser)
    add_json(parser)


def run(args: Namespace) -> int:
    """Do the work; the exit status."""
    from recover.cli._console import print_json, warn
    from recover.export.execute import execute_export, execute_export_part
    from recover.export.plan import plan_export

    plan = plan_export(
        args.model,
        args.output,
        outtype=args.outtype,
        max_shard_size=args.max_shard_size,
        config=args.config,
        names=args.names,
        force=args.force or args.shard is not None,
    )
    warn(args, plan.warnings)
    part = partial(execute_export_part, force=args.force)
    result = carry_out(args, "exporting", plan, execute_export, part)
    if result is None:
        return 0
    print_json(result.to_json()) if args.json else _print_result(result, verbose=args.verbose)
    return 0


def _print_result(result: "ExportResult", *, verbose: bool) -> None:
    from recover.cli._console import print_table, print_written
    from recover.cli._streams import say
    from recover.export.execute import label_of

    plan = result.plan
    columns = ("from:", "to:", "exact:", "tensors", "weights", "rounded", "relative rounding")
    both = list(zip(plan.tensors, result.roundings, strict=True))
    if verbose:
        print_table("", ("tensor:", *columns), [(each[0].name, *_row([each])) for each in both])
    groups: defaultdict[tuple[str, ...], list[Exported]] = defaultdict(list)
    for tensor, rounding in both:
        exact = str(not rounding.n_rounded)
        groups[label_of(tensor), tensor.kind.name, exact].append((tensor, rounding))
    rows = [_row(group) for _, group in sorted(groups.items())]
    print_table(f"{plan.path.name} ({plan.outtype})", columns, rows)
    rounded = result.n_exact < len(plan.tensors) and plan.outtype != "f32"
    less = "; --outtype f32 rounds the others less" if rounded else ""
    say(f"exact: {result.n_exact} of {len(plan.tensors)} tensors hold what the model says{less}")
    n_files = plan.layout.n_shards
    print_written(plan.output, plan.n_bytes, plan.n_weights, result.seconds, n_files)


def _row(group: "list[Exported]") -> tuple[str, ...]:
    """One line for tensors that are treated alike."""
    from recover.cli._console import count
    from recover.export.execute import label_of
    from recover.quants.rounding import Rounding

    first = group[0][0]
    rounding = sum((each for _, each in group), Rounding())
    return (
        label_of(first),
        first.kind.name,
        "no" if rounding.n_rounded else "yes",
        str(len(group)),
        count(sum(tensor.n_weights for tensor, _ in group)),
        count(rounding.n_rounded),
        f"{rounding.relative_rms:.2g}" if rounding.n_rounded else "-",
    )
