"""Which weights of a linear merge are best? KL divergence and perplexity over a grid of them.

    python examples/linear_weights.py [MODEL] [--text FILE] [--chunks N] [--plot FILE.png]

quantizes MODEL to Q5_K_M, Q4_K_M and Q2_K as llama.cpp does, takes weighted means of the three on a
grid of weights, and lets llama.cpp read a text with each, with the original beside them. On the
same text: the weights with the least square error (fitted to the original), those that
``--method linear`` finds without it, equal weights, and the posterior and joint estimates, which
are no weighted means.
Needs the extras ``eval`` and ``calibrate`` (and ``plot``).
"""

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from _study import DEFAULT, SMALL, quantize_mix

import recover

SHARED = Path(__file__).resolve().parents[2] / "shared" / "models"
Q4 = (0.0, 0.1, 0.2, 0.3, 0.4)
Q2 = (0.0, 0.01, 0.05)
LINES = {"least squares": "-.", "linear": "--", "posterior": "-", "joint": ":"}
"""What is drawn across, and how."""


def candidates(
    files: list[Path], truth: Path, grid: Sequence[float], folder: Path
) -> Iterator[tuple[str, Path]]:
    """What each model is called, and its file."""
    fitted = recover.calibrate(files, truth)

    def mean(name: str, weights: Sequence[float]) -> tuple[str, Path]:
        """The mean with these weights; inputs with the same bytes count together."""
        q5, q4, q2 = weights
        combinations = tuple(
            replace(each, weights=(q5, q4, q2) if len(each.types) == 3 else (q5 + q4, q2))
            for each in fitted.combinations
        )
        chosen = replace(fitted, combinations=combinations)
        out = folder / f"mean-{'-'.join(f'{each:.3f}' for each in weights)}.gguf"
        recover.merge(files, out, method="linear", calibration=chosen)
        return name, out

    yield mean("Q5_K_M alone", (1, 0, 0))
    for q2 in Q2:
        for q4 in grid:
            if q2 or q4:
                yield mean(f"{1 - q4 - q2:.2f} {q4:.2f} {q2:.2f}", (1 - q4 - q2, q4, q2))
    yield mean("equal weights", (1 / 3, 1 / 3, 1 / 3))
    for name, method, calibration in (
        ("least squares", "linear", fitted),
        ("linear", "linear", None),
        ("posterior", "posterior", None),
        ("joint", "joint", None),
    ):
        out = folder / f"{name.replace(' ', '-')}.gguf"
        recover.merge(files, out, method=method, calibration=calibration)
        yield name, out


def main() -> None:
    """Print a table, and draw it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", type=Path, default=DEFAULT, metavar="MODEL")
    parser.add_argument("--text", type=Path, help="UTF-8 text (default: one beside the model)")
    parser.add_argument("--chunks", type=int, default=24, help="of 512 tokens (default: 24)")
    parser.add_argument("--n-ctx", type=int, default=512, help=argparse.SUPPRESS)
    parser.add_argument("--grid", type=float, nargs="+", default=Q4, help=argparse.SUPPRESS)
    parser.add_argument("--plot", type=Path, metavar="FILE.png")
    args = parser.parse_args()
    is_small = args.model.name == SMALL.name
    text = args.text or SHARED / ("hamlet.txt" if is_small else "eval.txt")
    with tempfile.TemporaryDirectory(prefix="recover-study-") as scratch:
        folder = Path(scratch)
        files = [quantize_mix(args.model, folder, name) for name in ("Q5_K_M", "Q4_K_M", "Q2_K")]
        names, paths = zip(*candidates(files, args.model, args.grid, folder), strict=True)
        errors = recover.evaluate_models(paths, args.model)
        found = recover.measure_divergence(
            paths, args.model, text, n_ctx=args.n_ctx, n_chunks=args.chunks
        )
    first = errors[0].total.mse
    print(f"{found[0].n_tokens:,} tokens; perplexity of the original {found[0].ppl_truth:.4f}")
    print("weights of Q5, Q4, Q2    mse / Q5  mean KL  perplexity  same top")
    for name, error, each in zip(names, errors, found, strict=True):
        figures = f"{error.total.mse / first:8.4f}  {each.mean_kld:.5f}  {each.ppl:10.4f}"
        print(f"{name:23}  {figures}  {each.same_top:8.2%}")
    if args.plot is not None:
        figures_of = dict(zip(names, ((e.mean_kld, e.ppl) for e in found), strict=True))
        draw(args.plot, args.grid, figures_of)


def draw(path: Path, grid: Sequence[float], figures: dict[str, tuple[float, float]]) -> None:
    """Mean divergence and perplexity over the weight of Q4_K_M, a line for each of Q2_K."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    for i, (ax, what) in enumerate(
        zip(figure.subplots(1, 2), ("mean KL divergence (nats)", "perplexity"), strict=True)
    ):
        for q2 in Q2:
            names = [
                f"{1 - q4 - q2:.2f} {q4:.2f} {q2:.2f}" if q2 or q4 else "Q5_K_M alone"
                for q4 in grid
            ]
            ax.plot(grid, [figures[name][i] for name in names], "o-", label=f"{q2:.0%} of Q2_K")
        for name, style in LINES.items():
            ax.axhline(figures[name][i], color="0.4", linestyle=style, label=name)
        ax.set_xlabel("weight of Q4_K_M; the rest is Q5_K_M's")
        ax.set_title(what)
    figure.axes[1].legend()
    figure.savefig(path)


if __name__ == "__main__":
    main()
