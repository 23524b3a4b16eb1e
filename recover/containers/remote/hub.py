"""Where a URL leads: ``hf://OWNER/REPO@REVISION/FILE`` is a file of the Hugging Face Hub.

The variables of the environment are those of its own programs: HF_ENDPOINT, and HF_TOKEN for what
is not public (https://huggingface.co/docs/huggingface_hub/package_reference/environment_variables).
"""

import os
import re
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import quote, unquote

from recover.errors import GGUFError

_HUB = "https://huggingface.co"
_FILE = re.compile(
    r"hf://(?P<repo>[^/@]+/[^/@]+)(?:@(?P<revision>[^/]+))?/(?P<file>[^/].*)", re.DOTALL
)
# What may stand in a URL as it is; a percent sign is part of what is escaped already.
_KEPT = "/:?#[]@!$&'()*+,;=%~"


class Address(NamedTuple):
    """What is asked for."""

    url: str
    """With http or https."""
    headers: Mapping[str, str]
    """For this server alone, not for those that it leads to."""


def address_of(url: str) -> Address:
    """What to ask for a URL.

    Parameters
    ----------
    url : str
        ``http://``, ``https://`` or ``hf://OWNER/REPO/FILE``. A revision (branch, tag or commit)
        follows the repository's name: ``hf://OWNER/REPO@REVISION/FILE``, slashes in it as %2F.

    Raises
    ------
    GGUFError
        If a URL of the Hub names no file; the message leaves out the URL.
    """
    if not url.startswith("hf://"):
        return Address(quote(url.partition("#")[0], safe=_KEPT), {})
    named = _FILE.fullmatch(url)
    if named is None:
        raise GGUFError("names no file of the Hub; write hf://OWNER/REPO/FILE.gguf")
    revision = quote(unquote(named["revision"] or "main"), safe="")
    endpoint = (os.environ.get("HF_ENDPOINT") or _HUB).rstrip("/")
    token = (os.environ.get("HF_TOKEN") or "").strip()
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    file = quote(named["file"], safe="/")
    return Address(f"{endpoint}/{named['repo']}/resolve/{revision}/{file}", headers)
