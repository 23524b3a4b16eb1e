"""How trellis types are declared: those of today, and those of the first generation."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from recover.quants._declared import Layout
from recover.quants._hidden_scales import IK
from recover.quants.base import F32Array, U8Array
from recover.quants.interval import BlockIntervals, Stated

State = Callable[[bool, U8Array, Stated], None]
"""States the weights of blocks, with whether the first generation is meant."""


def trellis_type(
    layout: Layout,
    state: State,
    quantize: Callable[[F32Array, F32Array, U8Array], None],
    *,
    file_type: int,
    relative_mse: float,
    has_cells: bool = False,
    twin: str = "",
) -> BlockIntervals:
    """A type of today that is encoded; the other parameters are as of `BlockIntervals`."""
    return BlockIntervals(
        **layout,
        row_header=4,
        file_type=file_type,
        fallback="IQ4_NL",
        writer=IK,
        relative_mse=relative_mse,
        noise=1.0,
        has_cells=has_cells,
        state=partial(state, False),
        quantize=quantize,
        twin=twin,
    )


def first_generation(kind: BlockIntervals, state: State, **others: Any) -> BlockIntervals:
    """The type that had the name and number of one before June 2025.

    Parameters
    ----------
    kind : BlockIntervals
        The type of today.
    state : callable
        What states its weights, with whether the first generation is meant.
    **others : Any
        Other attributes that differ.
    """
    return replace(
        kind,
        name=f"{kind.name}_V1",
        is_alternative=True,
        file_type=None,
        file_types={},
        quantize=None,
        writer="ik_llama.cpp before June 2025",
        state=partial(state, True),
        **others,
    )
