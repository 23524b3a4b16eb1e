"""What is said of right sets: inputs that were all quantized from one original.

    python -m tests.benchmarks.right_sets [TYPE+TYPE...] [--sets 300] [--seed 0] [--of NAME...]

merges sets of two or three types, drawn from all that can be encoded, and prints each tensor of
which a merge is refused or warns, although nothing is wrong with it. The tensors are trained ones
of the models that the tests read, and such as weights seldom are: sparse, with dead rows and
columns, heavy-tailed, tiny, huge, constant, short. The originals are F32, F16 or BF16. An input may
have an importance matrix: smooth, with a few large columns, or with zeros.
"""

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from recover.estimators import method_names
from recover.quants import type_by_name
from tests.support.right_sets import (
    IMATRICES,
    Made,
    Rng,
    given,
    kinds,
    originals,
    said,
    takes_imatrix,
)


def alarms(
    inputs: Sequence[Made], names: Sequence[str], method: str, folder: Path
) -> list[tuple[str, str]]:
    """The tensors of which a merge of right inputs says something, and what."""
    if not (text := said(inputs, names, method, folder)):
        return []
    if len(names) == 1:
        return [(names[0], text)]
    # Some tensors are stored by all types without an error, so that each seems to be made from the
    # others; a model is not of such alone.
    usual, *others = names
    middle = len(others) // 2
    halves = [[usual, *each] for each in (others[:middle], others[middle:]) if each]
    if len(others) == 1:
        return [(others[0], text)]
    found = [each for half in halves for each in alarms(inputs, half, method, folder)]
    return found or [("all together", text)]


def drawn(n_sets: int, rng: Rng) -> Iterator[list[Made]]:
    """Sets of two or three types, with and without importance matrices."""
    known = kinds()
    for _ in range(n_sets):
        chosen = rng.choice(known, 2 + int(rng.random() < 0.25), replace=False)
        yield [
            Made(
                str(kind),
                str(rng.choice(list(IMATRICES))) if takes_imatrix(type_by_name(kind)) else "",
            )
            for kind in chosen
        ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("set", nargs="*", metavar="TYPE+TYPE")
    parser.add_argument("--sets", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--of", nargs="*", default=[""], metavar="NAME", help="which tensors")
    args = parser.parse_args()
    rng = np.random.default_rng(args.seed)
    sets = [given(text) for text in args.set] or list(drawn(args.sets, rng))
    names = [name for name in originals() if any(each in name for each in args.of)]
    n_alarms, n_wrong = 0, 0
    with tempfile.TemporaryDirectory() as folder:
        for inputs in sets:
            method = str(rng.choice(method_names()))
            found = alarms(inputs, names, method, Path(folder))
            n_wrong, n_alarms = n_wrong + bool(found), n_alarms + len(found)
            for name, text in found:
                print(f"{'+'.join(map(str, inputs))}, {method}: {name}: {text[:300]}", flush=True)
    print(f"{len(sets)} right sets of {len(names)} tensors: {n_wrong} with {n_alarms} alarms")


if __name__ == "__main__":
    main()
