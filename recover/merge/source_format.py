"""What the original weights of a merge were stored as, and the tensors that contradict it."""

from dataclasses import replace
from typing import TYPE_CHECKING

from recover._text import quoted, some
from recover.evidence.intervals import Intervals
from recover.evidence.lattice import SIGNIFICAND_BITS
from recover.inputs.open import reference_of
from recover.inputs.precision import fit_of, source_precision
from recover.merge.options import MergeOptions

if TYPE_CHECKING:
    from recover.merge.plan import MergePlan

# Of the weights that would be certain, how many must be able to show that they had another format.
_LEAST_EVIDENCE = 0.25


def with_source_format(
    plan: "MergePlan", options: MergeOptions, warnings: list[str]
) -> "MergePlan":
    """The plan with the format of the original weights, and what contradicts it."""
    snap = options.snap
    source_format = snap if options.names_format else "unknown"
    if snap == "auto" or (snap == "none" and any(plan.may_decide(each) for each in plan.tensors)):
        source_format = source_precision(reference_of(plan.models)).type
    if snap == "auto" and source_format not in SIGNIFICAND_BITS:
        warnings.append("the norms do not tell the source's number format: nothing is rounded")
    if snap != "none" and not options.snaps:
        warnings.append("--outtype q8_0 rounds all weights again, so --snap is of no use there")
    return _with_undecided(
        replace(plan, source_format=source_format), options.names_format, warnings
    )


def _with_undecided(plan: "MergePlan", is_asked_for: bool, warnings: list[str]) -> "MergePlan":
    """The plan, less the tensors that contradict the source's format.

    Where some do, only those of the others are left whose bytes confirm it, but where the user says
    what the format is.
    """
    intervals = Intervals()
    fits = {
        each.name: fit_of(
            each.name, [plan.models[i] for i in each.used], plan.source_format, intervals
        )
        for each in plan.tensors
        if each.action != "copy" and plan.significand_bits(each)
    }
    evidence = sum(fit.expected for fit in fits.values())
    n_single = sum(fit.n_single for fit in fits.values())
    plan = replace(plan, decides=evidence >= _LEAST_EVIDENCE * n_single)
    wrong = [name for name, fit in fits.items() if fit.is_contradicted]
    if not wrong:
        return plan
    warnings.append(
        f"{some([quoted(name) for name in wrong])}: the bytes show that the weights were not stored"
        f" as {plan.source_format}, {'' if is_asked_for else 'as the norms were, '}so none of them"
        " is set to such numbers"
    )
    undecided = frozenset(
        name
        for name, fit in fits.items()
        if fit.is_contradicted or not (is_asked_for or fit.is_confirmed)
    )
    is_left = is_asked_for or len(undecided) < len(fits)
    source_format = plan.source_format if is_left else "unknown"
    return replace(plan, undecided=undecided, source_format=source_format)
