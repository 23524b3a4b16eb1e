"""Calibrate on a model whose original is known, and use it on another one.

    python examples/calibrate_and_apply.py [MODEL] [MODEL]

fits a calibration to each of two models and applies it to the other one. The last column of figures
is what matters: how much worse the weights of the other model are than a model's own.
"""

from pathlib import Path

import _study

import recover


def study(models: list[Path], folder: Path) -> None:
    """Print the tables."""
    inputs, calibrations = [], []
    for i, truth in enumerate(models):
        (folder / str(i)).mkdir()
        names = ("Q5_K_M", "Q4_K_M", "Q2_K")
        inputs.append([_study.quantize_mix(truth, folder / str(i), name) for name in names])
        calibrations.append(folder / f"{truth.stem}-{i}.json")
        calibration = recover.calibrate(inputs[i], truth)
        calibration.save(calibrations[i])
        print(f"fitted on {truth.stem}:")
        _study.print_table(
            ("types", "tensors", "held out", "weights"),
            [
                (
                    " ".join(each.types),
                    str(each.n_tensors),
                    "-" if each.held_out is None else f"{each.held_out.mse_ratio:.4f}",
                    " ".join(f"{weight:.4f}" for weight in each.weights),
                )
                for each in calibration.combinations
            ],
        )
        print()
    for i, truth in enumerate(models):
        print(f"{truth.stem}: mean square error relative to the best input")
        merges = [
            (method, calibration)
            for method in ("linear", "posterior")
            for calibration in (None, *calibrations)
        ]
        _study.compare(inputs[i], truth, folder, merges)
        print()


if __name__ == "__main__":
    _study.run(__doc__, study, n_models=2)
