"""A bar for long calls, in notebooks and terminals."""

from collections.abc import Iterator
from contextlib import contextmanager

from tqdm.auto import tqdm

from recover.execution.tiles import Progress


@contextmanager
def progress_bar(what: str = "", unit: str = "weights") -> Iterator[Progress]:
    """A callback for `progress` that draws a bar, by tqdm: as a widget in notebooks.

    Parameters
    ----------
    what : str
        What is shown beside it.
    unit : str
        Of what is counted.

    Examples
    --------
    ::

        with recover.progress_bar("merging") as progress:
            recover.merge(paths, "out.gguf", progress=progress)
    """
    with tqdm(desc=what, unit=f" {unit}", unit_scale=True, total=0) as bar:

        def report(n_done: int, n_all: int) -> None:
            bar.total = n_all
            bar.update(n_done - bar.n)

        yield report
        if bar.total:
            bar.update(bar.total - bar.n)
