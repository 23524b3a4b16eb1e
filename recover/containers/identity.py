"""What tells a file from what is under its name later."""

from pathlib import Path

from recover._text import url_of


def identity_of(path: Path) -> list[str | int]:
    """Name, size, and time of change or what a server says of it, as they are now.

    Raises
    ------
    OSError
        If the file is not there any more.
    GGUFError
        If it is on a server that does not send it.
    """
    if (url := url_of(path)) is not None:
        from recover.containers.remote.fetching import first_bytes

        identity, _ = first_bytes(url, 1)
        return [url, identity.n_bytes, identity.stamp]
    status = path.stat()
    return [str(path.resolve()), status.st_size, status.st_mtime_ns]
