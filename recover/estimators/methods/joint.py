"""The posterior, corrected by what the search for scales says of a superblock's weights together.

The product of the densities takes the weights of a superblock as independent given the codes. They
are not: the stored scales are what the encoder's search made of all of them. A small network, which
was trained by simulating the encoders, is told what the posterior says of a superblock and how the
codes and scales lie; it corrects the means, in units of their deviations, and the deviations. The
estimates stay within the cells of all inputs.

``recover/data/joint/index.json`` lists the sets of types that have a network: some have one of
their own, others share one that is assembled from what was learned of each type. All other sets get
the posterior.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recover.estimators import _joint_gpu
from recover.estimators._joint import correct
from recover.estimators._joint_files import (
    STAR,
    Terms,
    digest_of,
    label_of,
    network_of,
    read_network,
    serving,
    terms_of,
)
from recover.estimators._joint_gpu import device
from recover.estimators._request import Request
from recover.estimators.base import DENSITIES
from recover.estimators.methods import posterior
from recover.estimators.tally import ALONE
from recover.evidence.buffer import Evidence, Source
from recover.quants import F32Array, ScalarType

SUMMARY = "the posterior, corrected by a network for the inputs' types"
SEES_CONFLICTS = True
DECIDES = True
CALIBRATED = DENSITIES

_SUPERBLOCK = 256

calibrate = posterior.calibrate
gains_alone = posterior.gains_alone


def estimate_each(
    evidence: Evidence, out: F32Array, tallies: NDArray[np.float64], request: Request
) -> None:
    """See `recover.estimators`."""
    terms = terms_for(request.sources)
    if terms is None or out.size % _SUPERBLOCK:
        posterior.estimate_each(evidence, out, tallies, request)
        return
    deviation = request.deviation if request.deviation.size else np.empty_like(out)
    posterior.estimate_each(evidence, out, tallies, request._replace(deviation=deviation))
    where = device()
    if where is None:
        more = correct(network_of(terms), evidence, out, deviation, len(tallies))
    else:
        more = _joint_gpu.correct(terms, evidence, out, deviation, len(tallies), where)
    tallies[:, 0] += more[:, 0]
    tallies[:, ALONE:] += more[:, 1:]


def names_of(sources: Sequence[Source]) -> tuple[str, ...] | None:
    """Types of inputs with as many stars as the number of their importance matrix.

    None if one of them is not as in the simulation.
    """
    if not all(map(_is_usual, sources)):
        return None
    weighted = [source.weighted and _is_searched(source) for source in sources]
    pairs = list(zip(sources, weighted, strict=True))
    matrices = list(dict.fromkeys(source.imatrix for source, counts in pairs if counts))
    return tuple(
        source.type.name + STAR * (1 + matrices.index(source.imatrix) if counts else 0)
        for source, counts in pairs
    )


def terms_for(sources: Sequence[Source]) -> Terms | None:
    """Terms of the network that serves a set of inputs, finest first; None if none does."""
    names = names_of(sources)
    if names is None:
        return None
    own = sources[0].network if sources else None
    return _terms_for(names) if own is None else read_network(*own).terms


def with_network(sources: Sequence[Source], path: Path) -> tuple[Source, ...] | None:
    """See `recover.estimators.base.Estimator`.

    Raises
    ------
    PlanError
        If the file cannot be read, or is none of a network.
    """
    own = str(path.absolute()), digest_of(path)
    if names_of(sources) != read_network(*own).names:
        return None
    return tuple(replace(source, network=own) for source in sources)


def saves(sources: Sequence[Source]) -> float:
    """See `recover.estimators.base.Estimator`."""
    names = names_of(sources)
    label = "" if names is None else label_of(names)
    entry = serving(label)
    return 0.0 if entry is None else entry.sets[label]


def serves(sources: Sequence[Source]) -> bool:
    """See `recover.estimators.base.Estimator`."""
    return terms_for(sources) is not None


@cache
def _terms_for(names: tuple[str, ...]) -> Terms | None:
    entry = serving(label_of(names))
    return None if entry is None else terms_of(entry, names)


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
