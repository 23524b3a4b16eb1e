"""Small files that processes on several machines share: each appears at once, with all of it.

Nothing here relies on locks. What decides between processes is the creation of a name that is there
already, which one of them alone can do, on network file systems as well.
"""

import errno
import json
import os
import secrets
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from recover.execution.publish import sync_folder

_LARGEST = 1 << 30
_WITHOUT_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
_PATIENCE, _NAP = 5.0, 0.05  # seconds


def put_first(path: Path, document: Any) -> bool:
    """Create a file with a JSON document; whether it was not there before.

    Raises
    ------
    OSError
        If it cannot be created.
    """
    temporary = _write(path, document)
    try:
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in _WITHOUT_LINKS:
                raise
            # Who creates the name has it; others wait until there is something in it.
            try:
                os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC))
            except FileExistsError:
                return False
            os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink()
    sync_folder(path.parent)
    return True


def put(path: Path, document: Any) -> None:
    """Write a file with a JSON document, or replace the one that is there; errors as above."""
    temporary = _write(path, document)
    try:
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    sync_folder(path.parent)


def _write(path: Path, document: Any) -> Path:
    """A temporary sibling with all of the document, on the disk."""
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        try:
            view = memoryview(json.dumps(document).encode())
            while view:
                view = view[os.write(descriptor, view) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    return temporary


def get(path: Path) -> Any:
    """The document of a file; None if there is none, or it is damaged."""
    until = time.monotonic() + _PATIENCE
    while True:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0))
        except FileNotFoundError:
            return None
        with os.fdopen(descriptor, "rb") as file:
            text = file.read(_LARGEST)
        if text or time.monotonic() > until:  # it may be about to be written
            break
        time.sleep(_NAP)
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
