"""Write the weights that networks learn from, and those that are only looked at.

``python -m tests.training.prepare DATA``; see docs/joint.md.
"""

import sys
from pathlib import Path

import numpy as np

from tests.oracle.weights import gguf_weights, sentence_encoder_weights
from tests.support.models import SHARED

N_HELD = 2048
LAYER = 147456, 589824  # sizes of the matrices of a layer
N_LAYERS, N_LEARNED = 6, 5


def prepare(folder: Path) -> None:
    """Write weights to train on, and weights to look at.

    A sentence encoder but for its last layer; that layer, and another model.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(3)
    matrices = [x for x in sentence_encoder_weights() if x.size % 256 == 0]
    layers = [x for x in matrices if x.size in LAYER]
    others = [x for x in matrices if x.size not in LAYER]
    per_layer = len(layers) // N_LAYERS
    table = max(others, key=lambda x: x.size).reshape(-1, 256)
    table = table[rng.permutation(len(table))]
    learned = [x.reshape(-1, 256) for x in layers[: N_LEARNED * per_layer]]
    np.save(folder / "train.npy", np.concatenate([*learned, table[:6000]]).astype(np.float16))
    held = np.concatenate([x.reshape(-1, 256) for x in layers[N_LEARNED * per_layer :]])
    np.save(folder / "held.npy", held[rng.permutation(len(held))[:N_HELD]])
    rows = [
        x.reshape(-1, 256)
        for x in gguf_weights(SHARED / "llama-29m-bf16.gguf")
        if x.shape[1] % 256 == 0 and x.shape[0] <= 4096
    ]
    llama = np.concatenate(rows)
    llama = llama[rng.permutation(len(llama))[:N_HELD]]
    np.save(folder / "llama.npy", (llama.view(np.uint32) >> 16).astype(np.uint16))


if __name__ == "__main__":
    prepare(Path(sys.argv[1]))
