"""What a re-blocking will do: every output byte has its place before a weight is written."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recover._brief import Brief
from recover._text import printable
from recover.containers.gguf.header import DEFAULT_ALIGNMENT, lay_out
from recover.containers.gguf.parts import check_whole_name
from recover.errors import PlanError
from recover.execution.output import check_output_path
from recover.reblock.integers import tile_size
from recover.reblock.source import Original


@dataclass(frozen=True, repr=False)
class ReblockPlan(Brief):
    """A whole re-blocking."""

    source: Original
    """The opened original."""
    output: Path
    """GGUF file to be written."""
    report: Path
    """Where the report of what was proven is written."""
    header: bytes
    """Of the output, padded to where the data begins."""
    positions: tuple[int, ...]
    """Of each tensor's first byte in the output."""
    n_bytes: int
    """Size of the output."""

    def facts(self) -> Iterator[tuple[str, object]]:
        """See `recover._brief.Brief`."""
        yield "source", self.source.path.name
        yield "output", self.output.name
        yield "tensors", len(self.source.tensors)
        yield "weights", self.n_weights
        yield "bytes", self.n_bytes
        yield "warnings", len(self.source.warnings)

    @property
    def asked(self) -> dict[str, Any]:
        """What it was made from, as plain data."""
        return {**self.source.asked, "output": str(self.output.absolute())}

    @property
    def n_weights(self) -> int:
        """Number of weights."""
        return sum(tensor.n_weights for tensor in self.source.tensors)

    @property
    def tile_sizes(self) -> list[int]:
        """For each tensor the weights that are worked on at once: whole rows."""
        return [tile_size(tensor.dims[0]) for tensor in self.source.tensors]


def plan_reblock(source: Original, output: str | os.PathLike[str]) -> ReblockPlan:
    """Decide where everything goes; nothing is written.

    Parameters
    ----------
    source : Original
        From one of the functions that open sources.
    output : path-like
        GGUF file to be written; the report is written beside it (``OUT.gguf.report.json``).

    Returns
    -------
    ReblockPlan

    Raises
    ------
    OutputError, PlanError
        If the output cannot be written there, or there is nothing to write.
    """
    output = Path(output)
    if not source.tensors:
        raise PlanError(f"{printable(source.path)}: holds no tensors")
    report = output.with_name(f"{output.name}.report.json")
    check_whole_name(output)
    check_output_path(output, source.parts)
    check_output_path(report, source.parts)
    layout = lay_out(
        source.metadata,
        [(tensor.name, tensor.dims, tensor.outtype) for tensor in source.tensors],
        DEFAULT_ALIGNMENT,
    )
    return ReblockPlan(source, output, report, layout.header, layout.positions, layout.n_bytes)
