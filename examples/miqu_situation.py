"""A model that leaked only as Q5_K_M, Q4_K_M and Q2_K, as miqu-1-70b did.

    python examples/miqu_situation.py [MODEL]

quantizes a model whose weights are known, merges the three files with each method, and prints the
mean square error relative to the best of them, and what the method expected of it.
"""

from pathlib import Path

import _study

METHODS = ("best", "linear", "midpoint", "posterior")


def study(models: list[Path], folder: Path) -> None:
    """Print the table."""
    (truth,) = models
    inputs = [_study.quantize_mix(truth, folder, name) for name in ("Q5_K_M", "Q4_K_M", "Q2_K")]
    print(f"{truth.stem}: mean square error relative to the best input")
    _study.compare(inputs, truth, folder, [(method, None) for method in METHODS])


if __name__ == "__main__":
    _study.run(__doc__, study)
