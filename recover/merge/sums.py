"""Sums over the weights of a tensor that a merge keeps, besides those of its estimator.

They come first; what `recover.estimators` says of the estimator's follows, where there is one.
"""

CERTAIN = 0
"""Weights that are certain: their bounds hold a single number of the source's format."""

BROKEN = 1
"""Groups of 16 weights of which an input has no finite values."""

EMPTY = 2
"""Proven intervals that hold no number of the source's format."""

FOREIGN_SCALES = 3
"""Scales that come from one weight each, and from no number of the source's format."""

EXPECTED = 4
"""How many of both there would be if the weights had nothing to do with that format."""

SNAPPED = 5
"""Weights of tiles that were set to numbers of the source's format, where certain or asked for."""

NOT_FINITE = 6
"""NaN and infinite values among those that are copied."""

ROUNDED = 7
"""Weights of a single input that the output's type does not hold exactly."""

CONFLICTS = 8
"""Weights on which inputs contradict each other."""

UNLIKE = 9
"""Weights in superblocks of which inputs without cells say something unrelated."""

DIFFERENCE = 10
"""Square difference between inputs without cells and the first one, summed over the weights."""

DIFFERENCE_EXPECTED = 11
"""The same, as far as errors of both explain it."""

LIKENESS = [UNLIKE, DIFFERENCE, DIFFERENCE_EXPECTED]
"""In the order of `recover.merge.compare.Likeness`."""

N_OWN = 12
"""How many these are."""
