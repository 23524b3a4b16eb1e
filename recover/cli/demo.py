"""``recover demo``."""

from argparse import ArgumentParser, Namespace
from dataclasses import replace
from importlib.resources import as_file, files
from pathlib import Path

from recover import _stopping as stopping
from recover.cli._arguments import add_json

NAME = "demo"
SUMMARY = "Recover a small model that comes with the package, and compare with the truth"

_TRUTH = "tiny-llama-3m-bf16.gguf"
_SMALLER = "Q8_0"
_BAR = 40  # characters
_INPUTS = tuple(f"tiny-llama-3m-{name}.gguf" for name in ("Q5_K_M", "Q4_K_M", "Q2_K"))


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the command's arguments."""
    add_json(parser)


def run(args: Namespace) -> int:
    """Do the work; the exit status."""
    with (
        as_file(files("recover") / "data") as folder,
        stopping.temporary_folder("recover-demo-") as scratch,
    ):
        return _run_in(args, folder, scratch)


def _run_in(args: Namespace, folder: Path, scratch: Path) -> int:
    from recover.cli._console import print_json, progress_bar
    from recover.cli._streams import say
    from recover.cli.evaluate import print_errors
    from recover.estimators import DEFAULT_METHOD, method_names
    from recover.evaluate.errors import evaluate_models
    from recover.inspect.report import inspect_files
    from recover.merge.execute import execute_merge
    from recover.merge.plan import plan_merge
    from recover.quantize.execute import execute_quantize
    from recover.quantize.plan import plan_quantize

    inputs = [folder / name for name in _INPUTS]
    with progress_bar(args, "inspecting") as progress:
        inspection = inspect_files(inputs, n_threads=args.threads, progress=progress)
    merges = []
    for method in method_names():
        plan = plan_merge(inputs, scratch / f"merged-{method}.gguf", method=method)
        with progress_bar(args, f"merging ({method})") as progress:
            merges.append(execute_merge(plan, n_threads=args.threads, progress=progress))
    best = scratch / f"merged-{DEFAULT_METHOD}.gguf"
    smaller = plan_quantize(best, best.with_stem(f"{best.stem}-{_SMALLER}"), _SMALLER)
    with progress_bar(args, "quantizing") as progress:
        execute_quantize(smaller, n_threads=args.threads, progress=progress)
    candidates = [*inputs, *(merge.plan.output for merge in merges), smaller.output]
    with progress_bar(args, "comparing with the truth") as progress:
        results = evaluate_models(
            candidates, folder / _TRUTH, n_threads=args.threads, progress=progress
        )
    if args.json:
        print_json(
            {
                "truth": _TRUTH,
                "inspection": inspection.to_json(),
                "merges": [merge.to_json() for merge in merges],
                "models": [result.to_json() for result in results],
            }
        )
        return 0
    say(f"Three quantizations of {_TRUTH} made by llama.cpp, inspected:")
    say()
    for line in inspection.findings():
        say(line)
    say()
    say(f"merged with each method, and the default one's merge quantized to {_SMALLER}:")
    say()
    print_errors([replace(result, path=Path(result.path).name) for result in results])
    say()
    say("mean square error of the weights; one file alone, as every other tool takes it, is 1:")
    say()
    first = results[0].total.mse
    shown = [results[0], *results[len(inputs) :]]
    width = max(len(Path(each.path).name) for each in shown)
    for each in shown:
        ratio = each.total.mse / first
        say(f"{Path(each.path).name:{width}}  {'#' * round(_BAR * ratio):{_BAR}}  {ratio:.3f}")
    say()
    for merge in merges:
        say(
            f"{merge.plan.output.name}: expected mean square error (predicted without the truth)"
            f" {merge.expected_mse_ratio:.3f} of that of the best single input"
        )
    return 0
