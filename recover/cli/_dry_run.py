"""What ``recover merge --dry-run`` prints."""

from argparse import Namespace
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from recover.merge.forecast import Forecast
    from recover.merge.plan import MergePlan

_NO_GAIN = 0.9995  # prints as 1.000


def dry_run(args: Namespace, plan: "MergePlan") -> int:
    """Print the plan, as JSON or for people with what to expect of it.

    Raises
    ------
    OutputError
        If a file system has too little space.
    """
    from recover.cli._console import print_json
    from recover.merge.forecast import check_space, forecast, free_space

    if args.json:
        print_json(plan.to_json())
        check_space(free_space(plan))
        return 0
    _print_plan(plan, verbose=args.verbose)
    expected = forecast(plan, n_threads=args.threads)
    _print_forecast(expected)
    check_space(expected.free)
    return 0


def _print_plan(plan: "MergePlan", *, verbose: bool) -> None:
    from recover.cli._console import count, print_table, size
    from recover.cli._streams import say

    is_split = plan.n_parts > 1
    parts = f" in {plan.n_parts} parts" if is_split else ""
    title = f"Plan for {plan.output} ({size(plan.n_bytes)}{parts}, {plan.method})"
    if verbose:
        rows = [
            (
                tensor.name,
                "x".join(map(str, tensor.dims)),
                tensor.action,
                " ".join(tensor.types),
                tensor.outtype,
                count(tensor.n_weights),
                f"{tensor.position:,}",
                *([str(tensor.part + 1)] if is_split else []),
            )
            for tensor in plan.tensors
        ]
        columns = ["tensor:", "shape:", "action:", "inputs:", "output:", "weights", "position"]
        columns += ["part"] if is_split else []
        print_table(title, columns, rows)
    else:
        say(title)
    actions = Counter(tensor.action for tensor in plan.tensors)
    counts = ", ".join(f"{n} to {action}" for action, n in sorted(actions.items(), reverse=True))
    n_weights = count(sum(tensor.n_weights for tensor in plan.tensors))
    say(f"{len(plan.tensors)} tensors, {n_weights} weights: {counts}")


def _print_forecast(expected: "Forecast") -> None:
    from recover.cli._console import duration, size
    from recover.cli._streams import say

    free = "; ".join(
        f"{size(has)} free" if len(expected.free) == 1 else f"{size(has)} free in {folder}"
        for folder, (_, has) in expected.free.items()
    )
    threads = "1 thread" if expected.n_threads == 1 else f"{expected.n_threads} threads"
    seconds = max(expected.seconds, 1e-3)
    rates = f"{size(expected.n_read / seconds)}/s are read, {size(expected.n_written / seconds)}/s"
    say(f"to read: {size(expected.n_read)}")
    say(f"to write: {size(expected.n_written)} ({free})")
    say(f"expected time: {duration(seconds)} with {threads}, if {rates} written")
    if expected.mse_ratio is None:
        say("expected gain: none, as nothing is estimated")
        return
    remark = "" if expected.mse_ratio < _NO_GAIN else ", so nothing is gained"
    say(
        f"expected gain: mean square error {expected.mse_ratio:.3f} of that of the best single"
        f" input{remark}"
    )
