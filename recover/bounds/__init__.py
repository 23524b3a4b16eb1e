"""What inputs prove of the original weights: intervals, and whether a model keeps within them."""

from recover._calling import make_callable

make_callable(__name__, "recover.bounds.single")
