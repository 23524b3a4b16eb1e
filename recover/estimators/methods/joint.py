"""The posterior, corrected by what the search for scales says of a superblock's weights together.

The product of the densities takes the weights of a superblock as independent given the codes. They
are not: the stored scales are what the encoder's search made of all of them. A small network, which
was trained by simulating the encoders, is told what the posterior says of a superblock and how the
codes and scales lie; it corrects the means, in units of their deviations, and the deviations. The
estimates stay within the cells of all inputs.

There is one network for each set of types that ``recover/data/joint/index.json`` lists, with or
without an importance matrix. Other sets get the posterior.
"""

import json
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recover.estimators._joint import correct
from recover.estimators._joint_net import Layer, Network, Round, layer
from recover.estimators._request import Request
from recover.estimators.base import DENSITIES
from recover.estimators.methods import posterior
from recover.estimators.tally import ALONE
from recover.evidence.buffer import Evidence, Source
from recover.quants import F32Array, ScalarType

SUMMARY = "the posterior, corrected by a network for the sets of K-quants that people have most"
SEES_CONFLICTS = True
DECIDES = True
CALIBRATED = DENSITIES

_SUPERBLOCK = 256
_ROUND = "enter", "gather", "spread", "leave"

calibrate = posterior.calibrate
gains_alone = posterior.gains_alone


def estimate_each(
    evidence: Evidence, out: F32Array, tallies: NDArray[np.float64], request: Request
) -> None:
    """See `recover.estimators`."""
    name = network_name(request.sources)
    if name is None or out.size % _SUPERBLOCK:
        posterior.estimate_each(evidence, out, tallies, request)
        return
    deviation = request.deviation if request.deviation.size else np.empty_like(out)
    posterior.estimate_each(evidence, out, tallies, request._replace(deviation=deviation))
    more = correct(network(name), evidence, out, deviation, len(tallies))
    tallies[:, 0] += more[:, 0]
    tallies[:, ALONE:] += more[:, 1:]


def network_name(sources: Sequence[Source]) -> str | None:
    """Name of the network that serves a set of inputs, finest first; None if none does."""
    if not all(map(_is_usual, sources)):
        return None
    name = "+".join(source.type.name for source in sources)
    weighted = {source.weighted for source in sources if _is_searched(source)}
    if len(weighted) != 1:
        return None
    if weighted.pop():
        if len({source.imatrix for source in sources if source.weighted}) > 1:
            return None
        name += " weighted"
    return name if name in _index() else None


def network_names() -> tuple[str, ...]:
    """Names of all networks."""
    return tuple(_index())


def _is_usual(source: Source) -> bool:
    """Whether an input is as in the simulation: of llama.cpp's encoder, with densities of ours."""
    return (
        isinstance(source.type, ScalarType)
        and source.has_cells
        and source.noise is None
        and source.density is None
        and not source.side_scaled
    )


def _is_searched(source: Source) -> bool:
    """Whether the scales were searched for, so that an importance matrix matters."""
    return source.type.name != "Q8_0"


@cache
def _index() -> dict[str, Any]:
    """What is known of each network, by its name."""
    text = (files("recover") / "data" / "joint" / "index.json").read_text(encoding="utf-8")
    index: dict[str, Any] = json.loads(text)["networks"]
    return index


@cache
def network(name: str) -> Network:
    """A network of the index."""
    path = files("recover") / "data" / "joint" / _index()[name]["file"]
    with path.open("rb") as file, np.load(file) as arrays:
        terms = {key: value.astype(np.float32) for key, value in arrays.items()}

    def part(name: str) -> Layer:
        return layer(terms[f"{name}.weight"], terms[f"{name}.bias"])

    n_rounds = sum(key.startswith("rounds.") for key in terms) // (2 * len(_ROUND))
    rounds = [Round(*(part(f"rounds.{i}.{each}") for each in _ROUND)) for i in range(n_rounds)]
    return Network(part("weights"), part("groups"), part("begin"), tuple(rounds), part("end"))
