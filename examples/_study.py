"""What the examples share: models whose original is known, their quantizations, and a table."""

import argparse
import re
import tempfile
from collections.abc import Callable, Iterable, Sequence
from importlib.resources import files
from pathlib import Path

import numpy as np
from gguf import GGUFWriter

import recover

SMALL = Path(str(files("recover") / "data" / "tiny-llama-3m-bf16.gguf"))
"""The model that comes with the package."""
_LARGER = Path(__file__).resolve().parents[2] / "shared" / "models" / "llama-29m-bf16.gguf"

DEFAULT = _LARGER if _LARGER.exists() else SMALL


Study = Callable[[list[Path], Path], None]
"""Called with the models and an empty folder."""


def run(description: str | None, study: Study, n_models: int = 1) -> None:
    """Call a study with the models from the command line, or the default ones."""
    parser = argparse.ArgumentParser(description=description)
    defaults = [DEFAULT, SMALL][:n_models]
    for i, default in enumerate(defaults, 1):
        parser.add_argument(
            f"model{i}",
            nargs="?",
            type=Path,
            default=default,
            metavar="MODEL",
            help=f"GGUF file with unquantized weights (default: {default.name})",
        )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="recover-study-") as folder:
        study([getattr(args, f"model{i + 1}") for i in range(n_models)], Path(folder))


def quantize(
    model: Path,
    output: Path,
    kind: str,
    rules: Sequence[tuple[str, str]] = (),
    imatrix: Path | None = None,
) -> Path:
    """Quantize as llama.cpp does; `rules` give tensors another type."""
    plan = recover.plan_quantize(model, output, kind, imatrix=imatrix, tensor_types=rules)
    recover.execute_quantize(plan)
    return output


def quantize_mix(model: Path, folder: Path, name: str) -> Path:
    """Q5_K_M, Q4_K_M or Q2_K with the types that llama.cpp gives a Llama without shared heads.

    ``llama_tensor_get_type`` in llama-quant.cpp: the K_M mixes spend more bits on some layers.
    """
    names = " ".join(recover.open_gguf(model).tensors)
    layers = sorted({int(number) for number in re.findall(r"\bblk\.(\d+)", names)})
    n = len(layers)
    more = [i for i in layers if i < n // 8 or i >= 7 * n // 8 or (i - n // 8) % 3 == 2]
    which = "|".join(map(str, more))
    output = (r"^output\.weight$", "Q6_K")
    rules = {
        "Q5_K_M": [(rf"blk\.({which})\.(attn_v|ffn_down)", "Q6_K")],
        "Q4_K_M": [(rf"blk\.({which})\.(attn_v|ffn_down)", "Q6_K")],
        "Q2_K": [(r"attn_v|attn_output|ffn_down", "Q3_K")],
    }
    return quantize(model, folder / f"{model.stem}-{name}.gguf", name[:4], [*rules[name], output])


def write_imatrix(model: Path, output: Path, seed: int) -> Path:
    """An importance matrix of random numbers, one per column: lognormal(0, 1)."""
    rng = np.random.default_rng(seed)
    writer = GGUFWriter(output, "imatrix")
    writer.add_string("general.type", "imatrix")
    for name, tensor in recover.open_gguf(model).tensors.items():
        if len(tensor.dims) == 2:
            importance = rng.lognormal(0, 1, (1, tensor.dims[0])).astype(np.float32)
            writer.add_tensor(f"{name}.in_sum2", importance)
            writer.add_tensor(f"{name}.counts", np.ones((1, 1), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return output


def merge(
    inputs: Sequence[Path], output: Path, method: str, calibration: Path | None = None
) -> tuple[Path, float | None]:
    """Merge to 32 bits, so that nothing is rounded; and the error that is expected, relatively."""
    plan = recover.plan_merge(inputs, output, method=method, outtype="f32", calibration=calibration)
    return output, recover.execute_merge(plan).expected_mse_ratio


def errors(models: Iterable[Path], truth: Path) -> dict[Path, float]:
    """Mean square error of each model."""
    found = recover.evaluate_models(list(models), truth)
    return {Path(each.path): each.total.mse for each in found}


def compare(
    inputs: Sequence[Path],
    truth: Path,
    folder: Path,
    merges: Sequence[tuple[str, Path | None]],
) -> None:
    """Print the error of each input and of each merge, relative to the best input."""
    outputs: dict[str, tuple[Path, float | None]] = {}
    for method, calibration in merges:
        name = method if calibration is None else f"{method}, {calibration.stem}"
        output = folder / f"{len(outputs)}.gguf"
        outputs[name] = merge(inputs, output, method, calibration)
    mse = errors([*inputs, *(path for path, _ in outputs.values())], truth)
    best = min(mse[path] for path in inputs)
    rows = [(path.stem, f"{mse[path] / best:.4f}", "") for path in inputs]
    rows += [
        (name, f"{mse[path] / best:.4f}", "-" if expected is None else f"{expected:.4f}")
        for name, (path, expected) in outputs.items()
    ]
    print_table(("model", "error", "expected"), rows)
    for path, _ in outputs.values():
        path.unlink()


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns of text; all but the first are figures."""
    lines = [tuple(columns), *(tuple(row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    for line in lines:
        cells = [line[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
        print("  ".join(cells).rstrip())
