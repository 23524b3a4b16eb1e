"""``recover evaluate``."""

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from recover.evaluate.errors import ErrorStatistics, ModelErrors

NAME = "evaluate"
SUMMARY = "Measure how far models are from the original that they come from"


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("models", nargs="+", metavar="MODEL", type=Path, help="GGUF file")
    parser.add_argument(
        "--truth", required=True, metavar="TRUTH", type=Path, help="GGUF file of the original"
    )
    parser.add_argument(
        "--by",
        choices=("tensor", "type", "role"),
        help="one line per tensor, type or role (default: one line per model)",
    )
    parser.add_argument(
        "--plot", metavar="DIR", type=Path, help="write pictures (PNG) into this folder"
    )
    parser.add_argument(
        "--report", metavar="FILE.html", type=Path, help="write one page with tables and pictures"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(args: Namespace) -> int:
    """Do the work; the exit status."""
    from recover.cli._console import print_json, progress_bar
    from recover.evaluate.errors import evaluate_models

    _check_outputs(args)
    with progress_bar(args, "comparing") as progress:
        results = evaluate_models(
            args.models,
            args.truth,
            by=args.by or "tensor",
            n_threads=args.threads,
            progress=progress,
        )
    document = {"truth": str(args.truth), "models": [each.to_json() for each in results]}
    _write_pictures(args, results, document)
    if args.json:
        print_json(document)
    else:
        print_errors(results, args.by)
    return 0


def _check_outputs(args: Namespace) -> None:
    """Refuse, before the work, what would fail after it."""
    if args.plot is None and args.report is None:
        return
    from recover.evaluate.pictures import check_folder, require_matplotlib
    from recover.gguf.writer import check_output_path

    require_matplotlib()
    if args.plot is not None:
        check_folder(args.plot)
    if args.report is not None:
        check_output_path(args.report, [*args.models, args.truth])


def _write_pictures(
    args: Namespace, results: "list[ModelErrors]", document: dict[str, Any]
) -> None:
    """The pictures and the report, where they are asked for."""
    if args.plot is None and args.report is None:
        return
    from recover.cli._console import message, progress_bar
    from recover.evaluate.histograms import collect_distributions
    from recover.evaluate.pictures import draw_pictures, save_pictures
    from recover.evaluate.report import Provenance, write_report

    with progress_bar(args, "collecting for the pictures") as progress:
        distributions = collect_distributions(
            results, args.truth, n_threads=args.threads, progress=progress
        )
    pictures = list(draw_pictures(results, distributions))
    inputs = [*args.models, args.truth]
    if args.plot is not None:
        paths = save_pictures(pictures, args.plot, inputs)
        message(args, f"wrote {len(paths)} pictures into {args.plot}")
    if args.report is not None:
        write_report(args.report, document, pictures, Provenance.of(args.command_line), inputs)
        message(args, f"wrote {args.report}")


def print_errors(results: "list[ModelErrors]", by: str | None = None) -> None:
    """Tables for people: one line per model, or per model one table with its parts."""
    from recover.cli._console import print_table

    figures = ("weights", "rmse", "max", "p95", "median", "SQNR dB", "exact", "mse / first")
    first = results[0].total
    if by is None:
        rows = [(each.path, *_figures(each.total, first)) for each in results]
        print_table("", ("model:", *figures), rows)
        return
    reference = {each.name: each.errors for each in results[0].tensors} | results[0].groups
    for result in results:
        parts = {each.name: each.errors for each in result.tensors}
        if by != "tensor":
            parts = dict(sorted(result.groups.items()))
        rows = [(key, *_figures(each, reference.get(key))) for key, each in parts.items()]
        rows.append(("all", *_figures(result.total, first)))
        print_table(result.path, (f"{by}:", *figures), rows)


def _figures(errors: "ErrorStatistics", reference: "ErrorStatistics | None") -> tuple[str, ...]:
    from recover.cli._console import count, optional

    ratio = errors.mse / reference.mse if reference and reference.mse else None
    return (
        count(errors.n_weights),
        f"{errors.rmse:.4g}",
        f"{errors.max_abs_error:.4g}",
        f"{errors.p95_abs_error:.4g}",
        f"{errors.median_abs_error:.4g}",
        f"{errors.sqnr_db:.2f}",
        f"{errors.exact_fraction:.2%}",
        optional(ratio, ".4f"),
    )
