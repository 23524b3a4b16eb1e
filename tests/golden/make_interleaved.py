"""Make ``recover/data/interleaved.npz``: where the bits of interleaved blocks lie.

From tables of bits (``interleave.npz`` of the golden data of ik_llama.cpp): for each type an array
[k, b], where bit b of the block of row k lies in the interleaved blocks. They are kept as
differences of neighbours, which compress to a fiftieth::

    python -m tests.golden.make_interleaved ../shared/golden-ik/interleave.npz
"""

import io
import sys
import zipfile
from pathlib import Path

import numpy as np

OUT = Path(__file__).parents[2] / "recover" / "data" / "interleaved.npz"


def main(source: Path) -> None:
    """Write the tables again."""
    with np.load(source) as arrays, zipfile.ZipFile(OUT, "w") as archive:
        for name in sorted(arrays):
            table = arrays[name].astype(np.int64)
            steps = np.diff(table.reshape(-1), prepend=0).reshape(table.shape)
            array = io.BytesIO()
            np.save(array, steps.astype("<i2"))
            entry = zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0))
            archive.writestr(entry, array.getvalue(), zipfile.ZIP_DEFLATED, 9)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
