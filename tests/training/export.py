"""Put trained networks where the method `joint` finds them.

``python -m tests.training.export NETS.pt ...`` writes ``recover/data/joint``. Later files replace
networks of earlier ones. It needs torch.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch

from tests.support.models import DATA

FOLDER = DATA / "joint"
STAR = "*"


def main(paths: list[str]) -> None:
    """Write the files and the index."""
    FOLDER.mkdir(exist_ok=True)
    index = json.loads((FOLDER / "index.json").read_text()) if paths[:1] == ["--add"] else {}
    networks = index.get("networks", {})
    for path in map(Path, paths):
        if path.name == "--add":
            continue
        for record in torch.load(path, "cpu", weights_only=False).values():
            types = [name.rstrip(STAR) for name in record["types"]]
            weighted = any(name.endswith(STAR) for name in record["types"])
            name = "+".join(types) + (" weighted" if weighted else "")
            file = "-".join([*types, "weighted"] if weighted else types) + ".npz"
            arrays = {k: v.numpy().astype(np.float16) for k, v in record["mean"].items()}
            np.savez_compressed(FOLDER / file, **arrays)
            width, n_rounds = record["shape"]
            facts = {"file": file, "width": width, "rounds": n_rounds}
            networks[name] = {**facts, "steps": record["n_steps"]}
    text = json.dumps({"networks": dict(sorted(networks.items()))}, indent=1)
    (FOLDER / "index.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
