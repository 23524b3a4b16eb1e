"""``recover verify``."""

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from recover.cli._arguments import add_json

if TYPE_CHECKING:
    from recover.bounds.verify import TensorCheck, VerifyResult

NAME = "verify"
SUMMARY = "Check a model against the intervals that its quantizations prove"


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("model", metavar="MODEL", type=Path, help="GGUF file or folder to check")
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        type=Path,
        help="GGUF file or folder of a quantization",
    )
    add_json(parser)


def run(args: Namespace) -> int:
    """Do the work; the exit status."""
    from recover.bounds.verify import verify_model
    from recover.cli._console import print_json, progress_bar

    with progress_bar(args, "checking") as progress:
        result = verify_model(args.model, args.inputs, n_threads=args.threads, progress=progress)
    print_json(result.to_json()) if args.json else _print(result, verbose=args.verbose)
    return 0 if result.is_consistent else 1


def _print(result: "VerifyResult", *, verbose: bool) -> None:
    from recover.cli._console import count, print_table
    from recover.cli._streams import say

    figures = ("weights", "bounded", "outside", "largest excess", "blocks", "come back")
    rows = [
        (
            check.path,
            count(check.total("n_weights")),
            count(check.total("n_bounded")),
            str(check.total("n_outside")),
            f"{check.largest_excess:.4g}",
            count(check.total("n_blocks")),
            "- (imatrix)" if check.imatrix else _share(check.reproduced_fraction),
        )
        for check in result.inputs
    ]
    print_table(f"{result.model} in the cells of", ("input:", *figures), rows)
    for check in result.inputs:
        shown = check.tensors if verbose else [each for each in check.tensors if each.n_outside]
        if shown:
            columns = ("tensor:", "type:", *figures)
            print_table(check.path, columns, [_row(tensor) for tensor in shown])
    for line in result.findings():
        say(line)


def _row(tensor: "TensorCheck") -> tuple[str, ...]:
    from recover.cli._console import count

    blocks = tensor.n_blocks
    return (
        tensor.name,
        tensor.type,
        count(tensor.n_weights),
        count(tensor.n_bounded),
        str(tensor.n_outside),
        f"{tensor.largest_excess:.4g}",
        count(blocks),
        _share(tensor.n_reproduced / blocks if blocks else None),
    )


def _share(value: float | None) -> str:
    from recover.cli._console import optional

    return optional(value, ".2%")
