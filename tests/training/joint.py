"""Train networks of the method `joint` for one set of types each, by simulating the quantizers.

``python -m tests.training.prepare DATA`` writes weights to train on and to look at, then
``python -m tests.training.joint DATA OUT --sets Q5_K+Q4_K+Q2_K --seconds 500`` trains one after the
other, on a GPU if there is one. See docs/joint.md. It needs torch.
"""

import argparse
from pathlib import Path
from typing import Any

import torch

from recover.estimators._joint_files import label_of, nearest
from recover.estimators._joint_torch import Terms, begin
from recover.training.learner import Learner
from recover.training.of_set import Gain, begin_as, train
from recover.training.simulate import draw, pool_from

N_HELD = 2048
_READERS = "groups", "enter", "gather"  # layers whose new rows begin at random
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def first_terms(names: tuple[str, ...], width: int, n_rounds: int) -> Terms:
    """Those of the shipped network for the set, or for any set, if that has as many rounds."""
    known = nearest(names)
    n_known = 0 if known is None else sum(name.endswith("enter.bias") for name in known)
    if known is None or n_known != n_rounds or width < len(known["begin.bias"]):
        return begin(width, n_rounds, len(names))
    return widened(begin_as(dict(known)), begin(width, n_rounds, len(names)))


def widened(known: Terms, new: Terms) -> Terms:
    """A wider network that does what a known one does, from one that was begun anew.

    What is added has no effect yet, but can learn: it either reads what is known, or is read. It
    may be one for any set; `new` has the layers that are the same for all sets.
    """
    old_width, width = len(known["begin.bias"]), len(new["begin.bias"])
    found = {}
    for name, own in known.items():
        layer, _, kind = name.rpartition(".")
        short = layer.rpartition(".")[2]
        places = [_places(n, old_width, width) for n in own.shape]
        shape = [_widened(n, old_width, width) for n in own.shape]
        fresh = torch.zeros(shape, dtype=own.dtype)
        if short in _READERS and kind in ("weight", "bias") and new[name].shape == fresh.shape:
            fresh = new[name].clone()
        # What is normalized is divided by the root mean square over the width.
        scaled = short in ("enter", "end") and kind in ("weight", "right")
        scale = (old_width / width) ** 0.5 if scaled else 1
        if kind == "weight" and short != "enter":
            fresh[places[0]] = 0
        fresh[torch.meshgrid(*places, indexing="ij")] = scale * own
        found[name] = fresh
    return found


def _places(n: int, old_width: int, width: int) -> Any:
    """Where the numbers of an axis are in a wider network."""
    if n % old_width:
        return torch.arange(n)
    return torch.cat([torch.arange(old_width) + i * width for i in range(n // old_width)])


def _widened(n: int, old_width: int, width: int) -> int:
    return n if n % old_width else n // old_width * width


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path, help="folder of nets.pt")
    parser.add_argument("--sets", default="Q5_K+Q4_K+Q2_K", help="several with commas")
    parser.add_argument("--shape", default="48x3", help="width x rounds")
    parser.add_argument("--seconds", type=float, default=500, help="for each set")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--size", type=int, default=2048, help="superblocks of a batch")
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--last", action="store_true", help="keep the last network, not the best")
    parser.add_argument("--resume", type=Path, help="nets.pt to go on with")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    torch.set_float32_matmul_precision("high")
    pool = pool_from(str(args.data / "train.npy"))
    held = pool_from(str(args.data / "held.npy"))[:N_HELD]
    known = torch.load(args.resume, "cpu", weights_only=False) if args.resume else {}
    width, n_rounds = map(int, args.shape.split("x"))
    for label in args.sets.split(","):
        names = tuple(label.split("+"))

        def tell(gain: Gain, label: str = label) -> None:
            print(
                f"{gain.seconds:5.0f} s {gain.n_steps:6d} {label}: {gain.before:.4f} ->"
                f" {gain.after:.4f} ({gain.after / gain.before - 1:+.2%}),"
                f" claims {gain.claims:.3f}",
                flush=True,
            )

        terms = first_terms(names, width, n_rounds)
        learner = Learner(terms, DEVICE, args.rate, compiled=DEVICE == "cuda")
        first = 0
        if label_of(names) in known:
            learner.resume(known[label_of(names)])
            first = learner.n_steps
        gain = train(
            learner,
            names,
            lambda rng, n: draw(rng, pool, n),
            held,
            seconds=args.seconds,
            n_steps=args.steps,
            size=args.size,
            seed=args.seed,
            first=first,
            keeps_last=args.last,
            tell=tell,
        )
        tell(gain)
        known[label_of(names)] = learner.record() | {
            "types": names,
            "saves": 1 - gain.after / gain.before,
        }
        torch.save(known, args.out / "nets.pt")


if __name__ == "__main__":
    main()
