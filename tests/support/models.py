"""Models that the tests share, and where they lie."""

import subprocess
import sys
from importlib.resources import files
from pathlib import Path

ROOT = Path(__file__).parents[2]
DATA = Path(str(files("recover") / "data"))
TINY = DATA / "tiny-llama-3m-bf16.gguf"
SHARED = ROOT.parent / "shared" / "models"


def quantize(
    model: Path, folder: Path, names: tuple[str, ...], imatrix: Path | None = None
) -> list[Path]:
    """Quantize with llama.cpp, in a process of its own; `imatrix` is an .npz file."""
    script = ROOT / "tests" / "golden" / "make_quantized.py"
    command = [sys.executable, str(script), str(model), str(folder), *names]
    command += [str(imatrix)] if imatrix else []
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    stem = model.stem.removesuffix("-bf16")
    return [folder / f"{stem}-{name}.gguf" for name in names]
