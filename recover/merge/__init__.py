"""From inputs to one file: the plan is pure data, the execution follows it tile by tile."""

from recover._calling import make_callable

make_callable(__name__, "recover.merge.once")
