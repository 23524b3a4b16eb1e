"""``recover inspect``."""

from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING

from recover.cli._arguments import add_inputs, add_json

if TYPE_CHECKING:
    from recover.inspect.files import FileReport
    from recover.inspect.report import Inspection

NAME = "inspect"
SUMMARY = "Say what files are, whether they belong together, and what a merge would gain"


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the command's arguments."""
    add_inputs(parser)
    add_json(parser)


def run(args: Namespace) -> int:
    """Do the work; the exit status."""
    from recover.cli._console import print_json, progress_bar
    from recover.inspect.report import inspect_files

    with progress_bar(args, "looking") as progress:
        result = inspect_files(args.inputs, n_threads=args.threads, progress=progress)
    print_json(result.to_json()) if args.json else _print(result, verbose=args.verbose)
    return 0


def _print(result: "Inspection", *, verbose: bool) -> None:
    for file in result.files:
        _print_file(file)
    if result.relations:
        _print_together(result, verbose=verbose)


def _print_file(file: "FileReport") -> None:
    from recover._text import quoted
    from recover.cli._console import count, print_table, size
    from recover.cli._streams import say
    from recover.inputs.originals.coded import said_of_codes
    from recover.inspect.files import described_imatrix

    def text(value: str | None) -> str:
        return "-" if value is None else quoted(value)

    types = ", ".join(f"{kind} x {n}" for kind, n in file.types.items())
    sides = f", and {len(file.side_tensors)} side tensors of NVFP4"
    sides = sides if file.side_tensors else ""
    marks = [
        f"{each.n_without:,} of {each.n_blocks:,} {each.type} blocks"
        for each in file.marks
        if each.n_without
    ]
    lacking = f"; {', '.join(marks)} lack the mark of the plain encoder" if marks else ""
    rows = [
        ("architecture", text(file.architecture)),
        ("name", text(file.name)),
        ("parameters", count(file.n_weights)),
        ("size", f"{size(file.n_bytes)}, {file.bits_per_weight:.2f} bits per weight"),
        ("types", types + sides),
        *[("stored as", f"{kind}: {how}") for kind, how in file.stored_as.items()],
        ("file type", file.file_type or "-"),
        ("importance matrix", described_imatrix(file)),
        ("quantized by", text(file.quantized_by)),
        ("quantizer (metadata)", text(file.quantizer)),
        ("quantizer (bytes)", file.quantizer_from_bytes + lacking),
        ("source precision", f"{file.source.type}: {file.source.evidence}"),
        *[("floats", said_of_codes(*each)) for each in file.codes.items()],
    ]
    print_table(file.path, ("what:", "found:"), rows)
    say()


def _print_together(result: "Inspection", *, verbose: bool) -> None:
    from recover.cli._console import count, optional, print_table
    from recover.cli._streams import say
    from recover.inspect.conflicts import conflict_share
    from recover.merge.savings import sentence

    n_identical = len(result.identical_tensors)
    columns = ("tensor:", "inputs:", "weights", "conflicts", "expected rmse", "mse / best input")
    rows = [
        (
            each.name,
            " ".join(each.types),
            count(each.n_weights),
            conflict_share(each),
            optional(None if each.variance is None else each.variance**0.5),
            optional(each.mse_ratio, ".3f"),
        )
        for each in result.expectations
        if verbose or any(each.duplicate_of)
    ]
    print_table("Together", columns, rows)
    say(f"identical in all files: {n_identical} of {len(result.expectations)} tensors")
    for line in result.findings():
        say(line)
    say(_verdict(result))
    for saving in result.savings:
        say(sentence(saving))


def _verdict(result: "Inspection") -> str:
    """What a merge of them would give."""
    from recover.merge.expect import expected_ratio

    if not result.is_of_use:
        return "a merge of all of them is of no use"
    ratio = expected_ratio(result.expectations)
    if ratio is None and any(each.sources for each in result.expectations):
        return (
            "nothing tells how far off a merge is: no input confines the weights, and codes that"
            " make up for each other's errors do not say by how much"
        )
    if ratio is None:
        return "a merge has nothing to estimate: what it takes is known, or the same in all files"
    text = f"a merge is expected to have {ratio:.3f} times the mean square error of the best input"
    if result.same_original:
        return text
    return f"{text}; it takes tensors that differ from one of them"
