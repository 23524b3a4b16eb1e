"""``recover evaluate``."""

from argparse import ArgumentParser, ArgumentTypeError, Namespace
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recover.cli._arguments import add_inputs, add_json, add_truth
from recover.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from recover.containers.model import Model
    from recover.evaluate.divergence import Divergence
    from recover.evaluate.errors import ErrorStatistics, ModelErrors

NAME = "evaluate"
SUMMARY = "Measure how far models are from the original that they come from"

_N_CTX = 512


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the command's arguments."""
    add_inputs(parser, "models", "MODEL")
    add_truth(parser)
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
    _add_text_arguments(parser)
    add_json(parser)


def _add_text_arguments(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("on a text, through llama.cpp (the extra 'eval')")
    group.add_argument(
        "--text",
        metavar="FILE",
        type=Path,
        help="UTF-8 text on which to measure the divergence from the original",
    )
    group.add_argument(
        "--n-ctx", metavar="N", type=_count, default=_N_CTX, help="tokens per chunk (default: 512)"
    )
    group.add_argument(
        "--chunks", metavar="N", type=_count, help="take N evenly spaced chunks (default: all)"
    )
    group.add_argument(
        "--native",
        action="store_true",
        help="let llama.cpp run the models as they are, which rounds activations as well",
    )


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) < 1 << 31:
        raise ArgumentTypeError(f"{text!r} is no number from 1 on")
    return int(text)


def run(args: Namespace) -> int:
    """Do the work; the exit status."""
    from recover.cli._console import print_json, progress_bar, warn
    from recover.evaluate.errors import evaluate_models

    _check_usage(args)
    _check_outputs(args)
    if args.text is not None:
        _check_llama_cpp()
        _check_runnable([args.truth, *args.models])
    with progress_bar(args, "comparing") as progress:
        results = evaluate_models(
            args.models,
            args.truth,
            by=args.by or "tensor",
            n_threads=args.threads,
            progress=progress,
        )
    warn(args, _warnings(args, results))
    if args.text is not None:
        results = _with_divergence(args, results)
    document = {"truth": str(args.truth), "models": [each.to_json() for each in results]}
    if args.json:
        print_json(document)
    else:
        print_errors(results, args.by)
        print_divergence(results)
    _write_pictures(args, results, document)
    return 0


def _check_usage(args: Namespace) -> None:
    if args.text is None and (args.native or args.chunks or args.n_ctx != _N_CTX):
        raise UsageError("--n-ctx, --chunks and --native need --text")


def _warnings(args: Namespace, results: "list[ModelErrors]") -> list[str]:
    """What makes figures mean less than they seem to."""
    from recover._text import printable, quoted, some
    from recover.containers.gguf.side_scales import unfolded_scale
    from recover.inputs.nearness import nearness_warnings
    from recover.inputs.open import open_model, open_models
    from recover.inputs.originals.coded import code_warnings
    from recover.quants import FloatType

    warnings = []
    compared = {each.name: None for result in results for each in result.tensors}  # in order
    for result in results:
        own = {each.name for each in result.tensors}
        missing = [quoted(name) for name in compared if name not in own]
        if missing:
            warnings.append(
                f"{printable(result.path)} has no tensor {some(missing)}: its figures are of fewer"
                " weights than those of the others"
            )
    original = open_model(args.truth).fitted(compared.keys())
    truth, models = original.tensors, open_models(args.models)
    warnings += _doubts(args, original, models, results)
    for model, result in zip(models, results, strict=True):
        tensors = model.fitted(compared.keys()).tensors
        for each in result.tensors:
            sizes = [known[each.name].n_weights for known in (tensors, truth)]
            if each.errors.n_weights < max(sizes):
                warnings.append(
                    f"{printable(model.path)} and {printable(args.truth)} do not have as many rows"
                    f" of {quoted(each.name)}: the figures are of those that both have"
                )
        scales = [
            quoted(scale)
            for name in compared
            if name in tensors and (scale := unfolded_scale(tensors[name], tensors))
            if scale not in truth
        ]
        if scales:
            warnings.append(
                f"{printable(model.path)}: llama.cpp multiplies by {some(scales)}, which"
                f" {printable(args.truth)} lacks: the figures are of the weights without"
            )
    coarse = [quoted(name) for name in compared if not isinstance(truth[name].type, FloatType)]
    if coarse:
        warnings.append(
            f"{printable(args.truth)} is no original: it is itself quantized on {some(coarse)}"
        )
    warnings += nearness_warnings(original, models, compared)
    return warnings + code_warnings(original, compared)


def _doubts(
    args: Namespace,
    original: "Model",
    models: "Sequence[Model]",
    results: "Sequence[ModelErrors]",
) -> list[str]:
    """Whether the models are the original's, and the original is one."""
    from recover._text import printable, quoted, some
    from recover.inputs.metadata import METHOD_KEY

    warnings, truth = [], printable(args.truth)
    if METHOD_KEY in original.metadata:
        warnings.append(f"{truth} is no original: it holds what a merge estimated")
    for result in results:
        far = [quoted(each.name) for each in result.tensors if each.errors.sqnr_db < 0]
        if far:
            warnings.append(
                f"{printable(result.path)} is farther from {truth} than zeros are on {some(far)}:"
                " are they of one model?"
            )
    known = set().union(*(model.fitted(original.tensors).tensors for model in models))
    lacking = [
        quoted(name)
        for name, each in original.tensors.items()
        if len(each.dims) > 1 and name not in known
    ]
    if lacking:
        warnings.append(f"only {truth} has {some(lacking)}: not compared")
    return warnings


def _check_outputs(args: Namespace) -> None:
    """Refuse, before the work, what would fail after it."""
    if args.plot is None and args.report is None:
        return
    from recover.evaluate.pictures import check_folder, require_matplotlib
    from recover.execution.output import check_output_path

    require_matplotlib()
    if args.plot is not None:
        check_folder(args.plot)
    if args.report is not None:
        check_output_path(args.report, _inputs(args))


def _inputs(args: Namespace) -> list[Path]:
    """Files that must not be overwritten."""
    from recover.inputs.open import open_models

    files = [part for each in open_models((*args.models, args.truth)) for part in each.parts]
    return files if args.text is None else [*files, args.text]


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
    inputs = _inputs(args)
    if args.plot is not None:
        paths = save_pictures(pictures, args.plot, inputs)
        message(args, f"wrote {len(paths)} pictures into {args.plot}")
    if args.report is not None:
        provenance = Provenance.of(args.command_line, inference=args.text is not None)
        write_report(args.report, document, pictures, provenance, inputs)
        message(args, f"wrote {args.report}")


def _check_llama_cpp() -> None:
    """Say that it is missing before anything is computed."""
    from recover.evaluate.llama_binding import library

    library()


def _check_runnable(paths: list[Path]) -> None:
    """Refuse what llama.cpp cannot run, before anything is computed."""
    from recover._text import printable
    from recover.containers.gguf.reader import GGUFModel
    from recover.errors import EvaluationError
    from recover.inputs.open import open_models

    for model in open_models(paths):
        if not isinstance(model, GGUFModel):
            raise EvaluationError(
                f"{printable(model.path)}: is no GGUF file, and llama.cpp, which reads the text,"
                " runs nothing else; convert it (llama.cpp's convert_hf_to_gguf.py), or leave"
                " --text out"
            )


def _with_divergence(args: Namespace, results: "list[ModelErrors]") -> "list[ModelErrors]":
    """The same, with what llama.cpp makes of the models."""
    from recover.cli._console import message, progress_bar
    from recover.evaluate.divergence import measure_divergence

    with progress_bar(args, "reading the text", "tokens") as progress:
        divergences = measure_divergence(
            args.models,
            args.truth,
            args.text,
            n_ctx=args.n_ctx,
            n_chunks=args.chunks,
            native=args.native,
            n_threads=args.threads,
            progress=progress,
            notify=lambda sentence: message(args, sentence),
            log=(lambda line: message(args, f"llama.cpp: {line}")) if args.verbose else None,
        )
    return [
        replace(result, divergence=divergence)
        for result, divergence in zip(results, divergences, strict=True)
    ]


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


def print_divergence(results: "list[ModelErrors]") -> None:
    """Tables for people: divergence and perplexity; nothing if no text was read."""
    from recover.cli._console import print_table
    from recover.cli._streams import say

    read = [(each.path, each.divergence) for each in results if each.divergence is not None]
    if not read:
        return
    first = read[0][1]
    say()
    print_table(
        f"Divergence from the original on {first.n_tokens:,} tokens (nats; 99% intervals)",
        (
            "model:",
            "mean KL",
            "interval",
            "median",
            "p90",
            "p99",
            "p99.9",
            "max",
            "KL - first",
            "interval",
        ),
        [(path, *_divergence_figures(each)) for path, each in read],
    )
    say()
    print_table(
        f"Most likely token, and perplexity (original: {first.ppl_truth:.4f})",
        (
            "model:",
            "same top",
            "in top 5",
            "in top 10",
            "rms dp",
            "perplexity",
            "ln ratio",
            "std error",
        ),
        [
            (
                path,
                f"{each.same_top:.2%}",
                f"{each.top1_in_top5:.2%}",
                f"{each.top1_in_top10:.2%}",
                f"{each.rms_delta_p:.3%}",
                f"{each.ppl:.4f}",
                f"{each.ln_ppl_ratio:+.5f}",
                f"{each.ln_ppl_ratio_se:.5f}",
            )
            for path, each in read
        ],
    )


def _divergence_figures(divergence: "Divergence") -> tuple[str, ...]:
    low, high = divergence.mean_kld_ci99
    paired = divergence.paired
    compared = ("-", "-")
    if paired is not None:
        interval = paired.mean_kld_difference_ci99_by_chunk or paired.mean_kld_difference_ci99
        compared = (
            f"{paired.mean_kld_difference:+.4g}",
            f"{interval[0]:+.4g} .. {interval[1]:+.4g}",
        )
    return (
        f"{divergence.mean_kld:.4g}",
        f"{low:.4g} .. {high:.4g}",
        f"{divergence.kld_median:.4g}",
        f"{divergence.kld_p90:.4g}",
        f"{divergence.kld_p99:.4g}",
        f"{divergence.kld_p999:.4g}",
        f"{divergence.kld_max:.4g}",
        *compared,
    )


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
