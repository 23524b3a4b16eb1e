"""Which tests one process gets: those of a file, or of all files whose types have large tables."""

import re
from functools import cache

from xdist.scheduler import LoadFileScheduling

from tests.support.models import ROOT

TABLES = "files that name types with large tables"
_TYPE = re.compile(r"\bIQ(1_S|1_M|2_XXS|2_XS|2_S)\b")


@cache
def group_of(path: str) -> str:
    """The file, or `TABLES`: libggml makes 17 seconds of tables in each process for these types."""
    return TABLES if _TYPE.search((ROOT / path).read_text(encoding="utf-8")) else path


class Scheduling(LoadFileScheduling):  # type: ignore[misc]
    """As ``--dist loadfile``, but for those tables."""

    def _split_scope(self, nodeid: str) -> str:
        return group_of(super()._split_scope(nodeid))
