"""A folder with the files that README and docs speak of."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.support.hf_folders import write_folder
from tests.support.llama_folders import folder as int4_folder
from tests.support.models import DATA, ROOT, SHARED, TINY


@pytest.fixture(scope="package")
def place(
    quantized_29m: dict[str, Path], llama_29m: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Where their commands run: q5.gguf is of llama-29m, tiny-q5.gguf of the small model."""
    where = tmp_path_factory.mktemp("docs")
    links = {
        "original.gguf": llama_29m,
        llama_29m.name: llama_29m,
        "TEXT.txt": SHARED / "hamlet.txt",
    }
    links |= dict.fromkeys(("tiny.gguf", "known.gguf", "known-bf16.gguf", TINY.name), TINY)
    links |= {"hamlet.txt": SHARED / "hamlet.txt", "examples": ROOT / "examples"}
    for name, kind in (("q5", "Q5_K_M"), ("q4", "Q4_K_M"), ("q2", "Q2_K")):
        links[f"{name}.gguf"] = links[f"lost-{name}.gguf"] = quantized_29m[kind]
        small = DATA / f"tiny-llama-3m-{kind}.gguf"
        links |= dict.fromkeys((f"tiny-{name}.gguf", f"known-{name}.gguf", small.name), small)
    links["model-Q4_K_M.gguf"] = quantized_29m["Q4_K_M"]
    for name, target in links.items():
        (where / name).symlink_to(target)
    (where / "recover").mkdir()
    (where / "recover" / "data").symlink_to(DATA)
    for name, kind in (("bnb-4bit", "nf4"), ("AWQ", "awq")):
        write_folder(llama_29m, where / f"model-{name}", kind)
    write_folder(TINY, where / "model-FP8", "fp8")
    int4_folder(where / "model-int4", "llama", np.random.default_rng(1))
    script = ROOT / "examples" / "make_grok_checkpoint.py"
    as_large = ["--layers", "1", "--head-size", "128", "--kv-heads", "1"]  # heads as Grok-1's
    for name, sizes in (("grok-small", []), ("grok-1", as_large)):
        subprocess.run([sys.executable, str(script), str(where / name), *sizes], check=True)
    return where
