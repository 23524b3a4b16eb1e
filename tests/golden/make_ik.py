"""Make ``tests/golden/ik.npz``: rows as ik_llama.cpp stores them, and what it decodes them to.

A few rows of each of the golden arrays of that program, in the order in which they are there::

    python -m tests.golden.make_ik ../shared/golden-ik

For each type ``TYPE.raw`` (n_rows, row_bytes), ``TYPE.original`` (n_rows, 512), as the upper halves
of float32 numbers where that is all, and ``TYPE.decoded``: a digest of the decoded weights.
"""

import hashlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

OUT = Path(__file__).parent / "ik.npz"
N_ROWS = 6
NO_SIGNS_OF_ZERO = ("Q5_0_R4", "Q6_0_R4")
"""Types of which that program's functions decode -0 as 0."""
NAMES = {"Q1_0_G128": "Q1_0"}


def digest(name: str, decoded: NDArray[np.float32]) -> str:
    """Of decoded weights, bit for bit but for the signs of zeros that a function loses."""
    if name in NO_SIGNS_OF_ZERO:
        decoded = decoded + np.float32(0)
    return hashlib.sha256(np.ascontiguousarray(decoded, "<f4").tobytes()).hexdigest()


def main(folder: Path) -> None:
    """Write the file again."""
    arrays: dict[str, Any] = {}
    for path in sorted(folder.glob("*.npz")):
        with np.load(path) as golden:
            if "raw" not in golden:
                continue
            name = NAMES.get(path.stem, path.stem.upper())
            # A row of zeros, small and large ones are among the first.
            together = int(golden["rows_per_group"]) if "rows_per_group" in golden else 1
            rows = slice(0, together if together > 1 else N_ROWS)
            original = golden["original"][rows]
            if not (original.view(np.uint32) & 0xFFFF).any():
                original = (original.view(np.uint32) >> 16).astype("<u2")
            decoded = golden["decoded_integers" if "decoded_integers" in golden else "decoded"]
            arrays[f"{name}.raw"] = golden["raw"][rows]
            arrays[f"{name}.original"] = original
            arrays[f"{name}.decoded"] = np.array(digest(name, decoded[rows]))
    np.savez_compressed(OUT, **arrays)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
