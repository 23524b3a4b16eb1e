"""What was compared of several files, and where they contradict each other, for people."""

from collections.abc import Sequence
from dataclasses import dataclass

from recover._text import quoted, some
from recover.containers.model import Model
from recover.inputs.provenance import confines
from recover.inputs.relations import explained_by_rounding
from recover.merge.checks import is_refused
from recover.merge.decide import Draft
from recover.merge.expect import Expectation


@dataclass(frozen=True)
class Conflicts:
    """What the figures of all tensors say.

    Attributes
    ----------
    n_compared : int
        Weights of tensors that the codes of at least two different inputs confine: all of them
        were looked at.
    n_sampled : int
        Weights of other tensors that two different inputs confine: of them a sample was looked at.
    n_conflicts : int
        Weights on which the inputs contradict each other, of those that were compared.
    tensors : tuple of (str, int, float)
        The same by tensor, and as a share, the largest first.
    refused : tuple of str
        Tensors with more conflicts than `recover merge` lets pass, and that no rounding of the
        original explains.
    unlike : tuple of str
        Tensors of which inputs without cells say something else than the others.
    is_same : bool
        Whether all tensors have the same bytes.
    """

    n_compared: int = 0
    n_sampled: int = 0
    n_conflicts: int = 0
    tensors: tuple[tuple[str, int, float], ...] = ()
    refused: tuple[str, ...] = ()
    unlike: tuple[str, ...] = ()
    is_same: bool = False

    def sentence(self, *, is_rounded: bool) -> str:
        """What follows from the figures, and what was looked at."""
        if self.unlike:
            return (
                "the files do not come from one original: inputs whose codes prove no bounds say"
                f" something else than the others in {some([quoted(name) for name in self.unlike])}"
            )
        looked_at = f"{self.n_compared:,} weights that two of them or more confine"
        if self.refused:
            share = f"{self.n_conflicts:,} of the {looked_at} ({_percent(self.n_share)})"
            named = [
                f"{quoted(name)} ({n:,}, {_percent(share)})" for name, n, share in self.tensors
            ]
            return (
                f"the files do not come from one original: they contradict each other on {share},"
                f" in {some(named)}"
            )
        head = "all files may come from one original: "
        if not self.n_compared and self.n_sampled:
            return f"{head}of {self.n_sampled:,} weights a sample was compared"
        if not self.n_compared and self.is_same:
            return f"{head}they are the same"
        if not self.n_compared:
            return f"{head}but there are no weights that two of them confine, so nothing shows it"
        text = f"they contradict each other on none of the {looked_at}"
        if self.n_conflicts:
            text = f"they contradict each other on {self.n_conflicts:,} of the {looked_at}"
            text += ", only where it was rounded" if is_rounded else ", as few as damage explains"
        if self.n_sampled:
            text += f"; of {self.n_sampled:,} others a sample was compared"
        return head + text

    @property
    def is_told(self) -> bool:
        """Whether any weights were compared by what their numbers or codes prove."""
        return self.n_compared > 0 or self.n_sampled > 0

    @property
    def n_share(self) -> float:
        """Share of the compared weights on which the inputs contradict each other."""
        return self.n_conflicts / self.n_compared if self.n_compared else 0.0


NOTHING_COMPARED = Conflicts()


def count_conflicts(
    models: Sequence[Model], drafts: Sequence[Draft], expectations: Sequence[Expectation]
) -> Conflicts:
    """Add up what was found in the tensors of several files.

    Parameters
    ----------
    models : sequence of Model
        The files.
    drafts : sequence of Draft
        What a merge does to each tensor.
    expectations : sequence of Expectation
        Of each tensor (`recover.merge.expect.expect_merge`).
    """
    compared = [each for each in expectations if each.is_compared]
    sampled = [
        each
        for each in expectations
        if not each.is_compared and _n_confining(models, each.name, each.duplicate_of) > 1
    ]
    found = [
        (e.name, e.n_conflicts, e.n_conflicts / e.n_weights) for e in compared if e.n_conflicts
    ]
    found.sort(key=lambda each: -each[2])
    refused = [e.name for e in compared if is_refused(e.n_conflicts, e.n_weights)]
    inputs = {draft.name: draft.used for draft in drafts if draft.name in refused}
    if refused and explained_by_rounding(models, inputs):
        refused = []
    unlike = [e.name for e in expectations if is_refused(e.n_unlike, e.n_weights)]
    return Conflicts(
        n_compared=sum(each.n_weights for each in compared),
        n_sampled=sum(each.n_weights for each in sampled),
        n_conflicts=sum(n for _, n, _ in found),
        tensors=tuple(found),
        refused=(*refused, *unlike),
        unlike=tuple(unlike),
        is_same=not any(any(each.duplicate_of) for each in expectations),
    )


def _n_confining(models: Sequence[Model], name: str, duplicate_of: Sequence[int]) -> int:
    """Inputs with different bytes of a tensor whose numbers or codes confine its weights."""
    return sum(confines(models[i], models[i].tensors[name]) for i in set(duplicate_of))


def conflict_share(each: Expectation) -> str:
    """The share of a tensor's conflicts: of any, never 0; a dash where nothing was compared."""
    return _percent(each.n_conflicts / each.n_weights) if each.is_compared else "-"


def _percent(share: float) -> str:
    return "<0.01%" if 0 < share < 1e-4 else f"{share:.2%}"
