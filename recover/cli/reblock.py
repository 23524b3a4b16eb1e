"""``recover reblock``."""

from argparse import ArgumentParser, BooleanOptionalAction, Namespace
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

from recover.cli._arguments import add_json, add_output
from recover.cli._sharing import add_sharing_arguments, carry_out

if TYPE_CHECKING:
    from recover.reblock.execute import ReblockResult, TensorResult

NAME = "reblock"
SUMMARY = "Store integer originals in GGUF without changing a value"

_TYPES = (
    "auto",
    "q8_0",
    "q4_0",
    "q4_1",
    "q5_0",
    "q1_0",
    "q2_0",
    "tq2_0",
    "mxfp4",
    "nvfp4",
    "bf16",
)
_ARCHITECTURES = (
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "deepseek2",
    "kimi",
    "gemma2",
    "gemma3",
    "gpt-oss",
    "grok",
)


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "source",
        metavar="SOURCE",
        type=Path,
        help="Grok-1 checkpoint folder, safetensors file or model folder, or GGUF file",
    )
    add_output(parser, "OUT", "GGUF file")
    parser.add_argument(
        "--type",
        type=str.lower,
        choices=_TYPES,
        default="auto",
        help="type of the integer tensors (default: the smallest that holds them exactly)",
    )
    parser.add_argument(
        "--allow-inexact",
        action="store_true",
        help="store tensors that no type holds exactly as F32 (or as --type bf16 or q8_0), and say"
        " how large the error is",
    )
    parser.add_argument(
        "--verify",
        action=BooleanOptionalAction,
        default=True,
        help="read everything that was written back and compare it with the source (default: yes)",
    )
    parser.add_argument(
        "--second-hand",
        action="store_true",
        help="SOURCE is a GGUF Q8_0 made from an integer original: find the original integers",
    )
    parser.add_argument(
        "--arch",
        choices=_ARCHITECTURES,
        help="give integers from safetensors the names and metadata of that architecture",
    )
    parser.add_argument(
        "--hparams",
        metavar="FILE",
        type=Path,
        help="JSON object of hyper-parameters that are not Grok-1's own",
    )
    parser.add_argument(
        "--float-type",
        type=str.upper,
        choices=("F32", "F16", "BF16"),
        help="type of Grok-1's embedding (default: F32, as in the checkpoint)",
    )
    parser.add_argument(
        "--like",
        metavar="FILE",
        type=Path,
        help="take metadata and vocabulary from this GGUF file of the same model",
    )
    add_sharing_arguments(parser)
    add_json(parser)


def run(args: Namespace) -> int:
    """Do the work; the exit status."""
    from recover.cli._console import print_json, warn
    from recover.reblock.dispatch import open_original
    from recover.reblock.execute import execute_reblock, execute_reblock_part
    from recover.reblock.integers import Request
    from recover.reblock.plan import plan_reblock

    outtype = None if args.type == "auto" else args.type.upper()
    source = open_original(
        args.source,
        Request(outtype=outtype, allow_inexact=args.allow_inexact),
        second_hand=args.second_hand,
        arch=args.arch,
        hparams=args.hparams,
        float_type=args.float_type,
        like=args.like,
        n_threads=args.threads,
    )
    plan = plan_reblock(source, args.output)
    warn(args, source.warnings)
    result = carry_out(
        args, "re-blocking", plan, execute_reblock, execute_reblock_part, verify=args.verify
    )
    if result is None:
        return 0
    if not result.exact:
        n_inexact = sum(not tensor.exact for tensor in result.tensors)
        warn(args, [f"{n_inexact} tensors are not exact; {plan.report} says by how much"])
    print_json(result.to_json()) if args.json else _print_result(result, verbose=args.verbose)
    return 0


def _print_result(result: "ReblockResult", *, verbose: bool) -> None:
    from recover.cli._console import print_table, print_written
    from recover.cli._streams import say

    plan = result.plan
    columns = ("from:", "to:", "group", "exact:", "tensors", "weights", "reason:")
    if verbose:
        rows = [(each.tensor.name, *_row([each])) for each in result.tensors]
        print_table("", ("tensor:", *columns), rows)
    groups: defaultdict[tuple[str, ...], list[TensorResult]] = defaultdict(list)
    for each in result.tensors:
        tensor = each.tensor
        key = (tensor.stored_as, tensor.outtype.name, str(tensor.group), str(each.exact))
        groups[key].append(each)
    print_table(plan.source.path.name, columns, [_row(group) for group in groups.values()])
    tensors = [each.tensor for each in result.tensors]
    if all(each.group is None and each.stored_as == each.outtype.name for each in tensors):
        say("nothing was re-blocked: no integers were found, and all tensors are copied")
    verified = all(each.verified for each in result.tensors)
    how = "every tensor was read back and compared" if verified else "not verified"
    say(f"{'exact' if result.exact else 'not exact'} ({how}); see {plan.report}")
    for condition in plan.source.conditions:
        say(f"provided that {condition}")
    print_written(plan.output, plan.n_bytes, plan.n_weights, result.seconds)


def _row(group: "list[TensorResult]") -> tuple[str, ...]:
    """One line for tensors that are treated alike."""
    from recover.cli._console import count

    first = group[0]
    return (
        first.tensor.stored_as,
        first.tensor.outtype.name,
        "-" if first.tensor.group is None else str(first.tensor.group),
        "yes" if first.exact else "no",
        str(len(group)),
        count(sum(each.tensor.n_weights for each in group)),
        first.reason,
    )
