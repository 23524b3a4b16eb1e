"""Files that llama.cpp runs in place of the models, one at a time, and the space that they take."""

import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from recover._text import printable
from recover.containers.model import Model
from recover.errors import EvaluationError
from recover.estimators import FIRST_ALONE
from recover.evaluate.reference import ReferenceLogits, block_bytes
from recover.merge.execute import execute_merge
from recover.merge.plan import MergePlan, plan_merge
from recover.quants import OpaqueType

# With all other types, BF16 included, llama.cpp rounds the activations to 8 bits of precision.
_RUN_AS_STORED = ("F32", "F16")

# What else may want space in the folder of temporary files.
_SPARE_BYTES = 16 << 20


class RunnableFiles:
    """The models' files as they are or, in their place, temporary dequantized ones.

    Those are F32 or, if there is no space for that, F16.

    Parameters
    ----------
    folder : Path
        For the temporary files; they are there one at a time.
    models : sequence of Model
        The original first.
    native : bool
        Run all but the original as they are.
    n_threads : int
        Threads that dequantize.
    notify : callable
        Called with sentences that the user should know.

    Raises
    ------
    EvaluationError
        If there is no space for the largest of the temporary files.
    GGUFError, PlanError
        If a model cannot be dequantized.
    """

    def __init__(
        self,
        folder: Path,
        models: Sequence[Model],
        *,
        native: bool,
        n_threads: int,
        notify: Callable[[str], None],
    ) -> None:
        self._folder = folder
        self._models = models
        self._n_threads = n_threads
        self._notify = notify
        self._plans = self._plan(
            [_runs_as_it_is(model) or (native and i > 0) for i, model in enumerate(models)]
        )

    def _plan(self, as_it_is: Sequence[bool]) -> list[MergePlan | None]:
        free = self._free_bytes()
        for outtype in ("f32", "f16"):
            plans = [
                None
                if keep
                else plan_merge(
                    [model.path],
                    self._folder / "model.gguf",
                    method=FIRST_ALONE,
                    outtype=outtype,
                )
                for model, keep in zip(self._models, as_it_is, strict=True)
            ]
            needed = max(map(_n_bytes, plans))
            if needed <= free:
                break
        else:
            raise EvaluationError(
                f"{self._folder.parent}: has {max(free, 0):,} bytes to spare, but the dequantized"
                f" model takes {needed:,}; set TMPDIR to a folder with more space"
            )
        if outtype != "f32" and needed:
            self._notify("there is no space for dequantized models in F32; they are stored as F16")
        return plans

    def _free_bytes(self) -> int:
        return shutil.disk_usage(self._folder).free - _SPARE_BYTES

    @contextmanager
    def path(self, index: int) -> Iterator[Path]:
        """The file to run for a model; it is there inside the context."""
        plan = self._plans[index]
        if plan is None:
            yield self._models[index].parts[0]
            return
        execute_merge(plan, n_threads=self._n_threads)
        try:
            yield plan.output
        finally:
            plan.output.unlink()

    def reference(self, n_blocks: int, shape: tuple[int, int]) -> ReferenceLogits:
        """A place for the original's logits beside the largest file that is still to come.

        To be called inside the original's context.

        Raises
        ------
        EvaluationError
            If there is no space for them, not even in two bytes each.
        """
        growth = max(map(_n_bytes, self._plans[1:])) - _n_bytes(self._plans[0])
        free = self._free_bytes() - max(0, growth)
        for compact in (False, True):
            needed = n_blocks * block_bytes(shape, compact=compact)
            if needed <= free:
                break
        else:
            raise EvaluationError(
                f"{printable(tempfile.gettempdir())}: has {max(free, 0):,} bytes to spare, but the"
                f" original's logits take {needed:,}; set TMPDIR to a folder with more space, or"
                " take fewer --chunks"
            )
        if compact:
            self._notify("there is no space for the original's logits in F32; 16 bits are kept")
        return ReferenceLogits(n_blocks, shape, compact=compact)


def _runs_as_it_is(model: Model) -> bool:
    """Whether llama.cpp computes with its weights as they are, and with exact activations."""
    kinds = {tensor.type for tensor in model.tensors.values()}
    return all(isinstance(kind, OpaqueType) or kind.name in _RUN_AS_STORED for kind in kinds)


def _n_bytes(plan: MergePlan | None) -> int:
    return 0 if plan is None else plan.n_bytes
