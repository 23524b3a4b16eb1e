"""``recover train-set``."""

from argparse import ArgumentParser, ArgumentTypeError, Namespace
from typing import TYPE_CHECKING

from recover.cli._arguments import add_inputs, add_json, add_output

if TYPE_CHECKING:
    from recover.training.of_set import Gain

NAME = "train-set"
SUMMARY = "Fine-tune a network for merge --method joint to a model's own inputs"


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the command's arguments."""
    add_inputs(parser)
    add_output(parser, "FILE", "network")
    parser.add_argument(
        "--device",
        choices=("cuda", "cpu"),
        default="cuda",
        help="where torch learns (default: cuda, a GPU)",
    )
    parser.add_argument(
        "--seconds",
        type=_positive,
        default=180.0,
        metavar="N",
        help="how long it learns (default: 180)",
    )
    parser.add_argument("--steps", type=_count, metavar="N", help="at most so many batches")
    add_json(parser)


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e6:
        raise ArgumentTypeError(f"{text!r} is no number of seconds")
    return value


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"{text!r} is no number of batches")
    return int(text)


def run(args: Namespace) -> int:
    """Do the work; the exit status."""
    from recover.cli._console import message, print_json
    from recover.cli._streams import say
    from recover.training.torch_here import check_torch

    check_torch(args.device)
    from recover.training.fine_tune import train_set

    def tell(gain: "Gain") -> None:
        message(args, f"{gain.seconds:.0f} s, {gain.n_steps:,} steps: {_ratio(gain)}")

    trained = train_set(
        args.inputs,
        args.output,
        device=args.device,
        seconds=args.seconds,
        n_steps=args.steps,
        tell=tell,
    )
    before, after = trained.before, trained.after
    if args.json:
        print_json(
            {
                "output": str(args.output),
                "types": list(trained.names),
                "n_weights": trained.n_weights,
                "n_covered": trained.n_covered,
                "n_steps": after.n_steps,
                "seconds": after.seconds,
                "held_out": {
                    "posterior": after.before,
                    "before": before.after,
                    "after": after.after,
                    "claims": after.claims,
                },
            }
        )
        return 0
    share = trained.n_covered / trained.n_weights
    say(f"{' + '.join(trained.names)}: {share:.1%} of the weights")
    say(f"held-out superblocks, mean square error over that of the finest input: {_ratio(after)}")
    say(f"before training: {before.after:.4f}; claims {after.claims:.3f} of what is measured")
    say(f"wrote {args.output} after {after.n_steps:,} steps in {after.seconds:.0f} s")
    return 0


def _ratio(gain: "Gain") -> str:
    return (
        f"posterior {gain.before:.4f}, network {gain.after:.4f}"
        f" ({gain.after / gain.before - 1:+.2%})"
    )
