"""Put trained networks where the method `joint` finds them.

``python -m tests.training.export [--any FOLDER ...] [NETS.pt ...]`` writes ``recover/data/joint``.
A folder has ``any.pt`` and ``gains.json`` of `tests.training.any_set`; the others are of
`tests.training.joint`. What is there already and is not replaced stays. It needs torch.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recover.estimators._joint_files import STAR, label_of
from tests.support.models import DATA

FOLDER = DATA / "joint"
LEAST_GAIN, MOST_OFF = 0.01, 0.03  # of the square error; of what is claimed over what is measured


def served(gains: dict[str, list[list[float]]]) -> dict[str, float]:
    """What sets gain that gain enough, and are claimed well enough, with all weights looked at."""
    found = {
        label_of(name.split("+")): round(float(np.mean([1 - a / b for _, b, a, _ in rows])), 4)
        for name, rows in gains.items()
        if "+" in name
        and all(after < (1 - LEAST_GAIN) * before for _, before, after, _ in rows)
        and all(abs(claimed / after - 1) < MOST_OFF for _, _, after, claimed in rows)
    }
    return dict(sorted(found.items()))


def write(file: str, terms: dict[str, Any]) -> None:
    arrays = {k: v.numpy().astype(np.float16) for k, v in terms.items()}
    np.savez_compressed(FOLDER / file, **arrays)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("nets", nargs="*", type=Path)
    parser.add_argument("--any", nargs="*", type=Path, default=[])
    args = parser.parse_args()
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / "index.json"
    index = json.loads(path.read_text()) if path.exists() else {"of_sets": [], "of_any_set": []}
    of_sets = {each["file"]: each for each in index["of_sets"]}
    of_any = {each["file"]: each for each in index["of_any_set"]}
    for each in args.nets:
        for record in torch.load(each, "cpu", weights_only=False).values():
            types = list(record["types"])
            plain = [name.rstrip(STAR) for name in types]
            weighted = any(name.endswith(STAR) for name in types)
            file = "-".join([*plain, "weighted"] if weighted else plain) + ".npz"
            write(file, record["mean"])
            of_sets[file] = {
                "file": file,
                "types": types,
                "steps": record["n_steps"],
                "saves": round(record["saves"], 4),
            }
    for folder in args.any:
        record = torch.load(folder / "any.pt", "cpu", weights_only=False)
        gains = json.loads((folder / "gains.json").read_text())
        file = "any-weighted.npz" if any(STAR in name for name in record["types"]) else "any.npz"
        write(file, record["mean"])
        known = {"file": file, "types": list(record["types"]), "steps": record["n_steps"]}
        of_any[file] = known | {"sets": served(gains)}
    found = {"of_sets": [of_sets[f] for f in sorted(of_sets)]}
    found |= {"of_any_set": [of_any[f] for f in sorted(of_any)]}
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
