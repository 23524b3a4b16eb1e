"""What a journal says of the tensors of a merge that are complete.

It may come from anywhere: an entry whose sums cannot be those of a merge counts as not written.
"""

from typing import Any

from recover.merge.plan import MergePlan
from recover.merge.sums import NUMBERS, Sums

_LARGEST_ERROR = 1.2e77  # of one weight, squared: larger ones are no float32
_SQUARES = ("difference", "difference_expected")


def read_sums(plan: MergePlan, index: int, record: Any) -> Sums:
    """The sums of an entry.

    Raises
    ------
    OverflowError, ValueError
        If no merge of that tensor has such sums.
    """
    tensor, sums = plan.tensors[index], Sums.from_record(record)
    n_inputs, tally = len(tensor.used), sums.estimated
    is_estimated = tensor.action != "copy" and not tensor.is_known
    if tally is None and is_estimated:
        raise ValueError("there are no sums of what is estimated")
    largest = tensor.n_weights * _LARGEST_ERROR
    # Each of the merge's own counts a weight once, or once for each input.
    counted = tensor.n_weights * (n_inputs + len(tensor.compared))
    limits = [
        (getattr(sums, name), 0.0, largest * n_inputs if name in _SQUARES else counted)
        for name in NUMBERS
    ]
    if tally is not None:
        if tally.n_inputs != n_inputs:
            raise ValueError("these are the sums of other inputs")
        limits += [(float(each), 0.0, largest * n_inputs) for each in tally.alone]
        limits.append((tally.variance, -largest, largest))  # less what certain weights are not off
        limits.append((tally.n_conflicts, 0.0, tensor.n_weights))
    if not all(low <= each <= high for each, low, high in limits):
        raise ValueError("sums out of range")
    return sums
