"""Output appears under its name complete or not at all, whatever happens on the way."""

import errno
import os
import resource
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recover.errors import OutputError
from recover.execution import reserving
from recover.execution.output import OutputFile, OutputFiles
from tests.support.file_systems import mounted
from tests.support.outputs import NEW, OLD, check_untouched, write

# When all goes well.


def test_file_appears_when_complete(path: Path, before: bytes | None) -> None:
    with OutputFile(path, len(NEW)) as output:
        output.write_at(0, NEW)
        assert (path.read_bytes() if path.exists() else None) == before
        assert len(list(path.parent.iterdir())) == 1 + (before is not None)
    check_untouched(path, NEW)


def test_old_file_is_replaced_not_changed(path: Path) -> None:
    path.write_bytes(OLD)
    with path.open("rb") as reader:
        write(path)
        assert reader.read() == OLD
    assert path.read_bytes() == NEW


def test_bytes_that_nobody_wrote_are_zero(path: Path) -> None:
    with OutputFile(path, 1000) as output:
        output.write_at(990, b"end")
    assert path.read_bytes() == bytes(990) + b"end" + bytes(7)


def test_empty_file(path: Path) -> None:
    write(path, b"")
    assert path.read_bytes() == b""


def test_arrays_are_written_as_their_bytes(path: Path) -> None:
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    with OutputFile(path, values.nbytes) as output:
        output.write_at(0, values.data)
    assert path.read_bytes() == values.tobytes()


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002, 0o000])
def test_permissions_follow_the_umask(path: Path, before: bytes | None, mask: int) -> None:
    previous = os.umask(mask)
    try:
        write(path)
    finally:
        os.umask(previous)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask


@pytest.mark.parametrize("name", ["x" * 255, "\u00e9" * 127, "\U0001f600" * 62, ".hidden", " "])
def test_any_name_that_the_file_system_takes(tmp_path: Path, name: str) -> None:
    write(tmp_path / name)
    check_untouched(tmp_path / name, NEW)


def test_link_stays_a_link(tmp_path: Path) -> None:
    folder, link = tmp_path / "folder", tmp_path / "link.gguf"
    folder.mkdir()
    link.symlink_to("folder/out.gguf")
    for content in (OLD, NEW):  # dangling at first
        write(link, content)
        assert link.is_symlink()
        check_untouched(folder / "out.gguf", content)


def test_relative_path(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (path.parent / "elsewhere").mkdir()
    monkeypatch.chdir(path.parent)
    with OutputFile(Path("out.gguf"), len(NEW)) as output:
        monkeypatch.chdir("elsewhere")
        output.write_at(0, NEW)
    assert path.read_bytes() == NEW


def test_threads_write_at_once(path: Path) -> None:
    n_threads, chunk = 8, 997
    content = np.random.default_rng(3).integers(0, 256, 400 * chunk + 5, np.uint8)
    barrier = threading.Barrier(n_threads)

    def work(output: OutputFile, first: int) -> None:
        barrier.wait()
        starts = range(first * chunk, content.size, n_threads * chunk)
        for start in reversed(starts):
            output.write_at(start, content[start : start + chunk].data)

    with OutputFile(path, content.size) as output:
        threads = [threading.Thread(target=work, args=(output, i)) for i in range(n_threads)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert path.read_bytes() == content.tobytes()


def test_writes_that_the_system_cuts_short(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, sizes = os.pwrite, []

    def some(descriptor: int, data: memoryview, position: int) -> int:
        sizes.append(len(data))
        return whole(descriptor, data[:1000], position)

    monkeypatch.setattr(os, "pwrite", some)
    write(path)
    assert path.read_bytes() == NEW
    assert len(sizes) > len(NEW) // 1000


def test_order_of_flush_and_rename(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, object]] = []

    def record(name: str, of_what: Callable[..., object]) -> None:
        original = getattr(os, name)

        def call(*arguments: Any) -> Any:
            calls.append((name, of_what(*arguments)))
            return original(*arguments)

        monkeypatch.setattr(os, name, call)

    record("fsync", lambda descriptor: stat.S_ISDIR(os.fstat(descriptor).st_mode))
    record("replace", lambda _source, target: target)
    write(path)
    assert calls == [("fsync", False), ("replace", path.resolve()), ("fsync", True)]
    calls.clear()
    paths = [path.resolve().with_name(f"{i}") for i in range(3)]
    with OutputFiles([OutputFile(each, 9) for each in paths], 2):
        pass
    assert calls[:3] == [("fsync", False)] * 3
    assert calls[3:5] == [("fsync", False), ("fsync", True)]  # the record of what goes where
    assert calls[5] == ("fsync", True)  # older files are aside
    assert calls[6:] == [*(("replace", each) for each in paths[::-1]), ("fsync", True)]


# When the work fails.


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, MemoryError, ZeroDivisionError])
def test_error_inside_leaves_nothing(
    path: Path, before: bytes | None, error: type[BaseException]
) -> None:
    def work() -> None:
        with OutputFile(path, len(NEW)) as output:
            output.write_at(0, NEW)
            assert len(list(path.parent.iterdir())) == 1 + (before is not None)
            raise error

    with pytest.raises(error):
        work()
    check_untouched(path, before)


def test_descriptors_are_closed(path: Path) -> None:
    folder = Path("/proc/self/fd")
    if not folder.exists():
        folder = Path("/dev/fd")
    n_open = len(list(folder.iterdir()))
    for _ in range(3):
        write(path)
        with pytest.raises(ZeroDivisionError), OutputFile(path, 1):
            raise ZeroDivisionError
    assert len(list(folder.iterdir())) == n_open


def test_error_is_not_hidden_by_a_temporary_file_that_is_gone(path: Path) -> None:
    def work() -> None:
        with OutputFile(path, 9):
            next(path.parent.glob(".*.tmp")).unlink()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    check_untouched(path, None)


FAILING = {
    "reserving": ("_fallocate", 0, errno.ENOSPC, "no space left"),
    "reserving, quota": ("_fallocate", 0, errno.EDQUOT, "no space left"),
    "reserving, damaged disk": ("_fallocate", 0, errno.EIO, "cannot be written"),
    "sizing": ("ftruncate", 0, errno.EFBIG, "no space left"),
    "first write": ("pwrite", 0, errno.ENOSPC, "no space left"),
    "second write": ("pwrite", 1, errno.ENOSPC, "no space left"),
    "write, damaged disk": ("pwrite", 1, errno.EIO, "cannot be written"),
    "flush": ("fsync", 0, errno.ENOSPC, "no space left"),
    "flush, damaged disk": ("fsync", 0, errno.EIO, "cannot be written"),
    "rename": ("replace", 0, errno.EACCES, "cannot be written"),
}


@pytest.mark.parametrize("case", FAILING)
def test_failing_disk(
    path: Path, before: bytes | None, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    name, n_good, number, words = FAILING[case]
    owner = reserving if name == "_fallocate" else os
    original, n_calls = getattr(owner, name), 0

    def fail(*arguments: Any) -> Any:
        nonlocal n_calls
        n_calls += 1
        if n_calls <= n_good:
            return original(*arguments)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(reserving, "_is_in_memory", lambda _descriptor: False)
    monkeypatch.setattr(owner, name, fail)
    with pytest.raises(OutputError, match=words) as caught:
        write(path)
    monkeypatch.undo()
    assert n_calls == n_good + 1
    assert str(caught.value).startswith(f"{path}: ")
    assert str(caught.value).isprintable()
    check_untouched(path, before)


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EINVAL])
def test_file_system_that_cannot_reserve(
    path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(reserving, "_fallocate", refuse)
    monkeypatch.setattr(reserving, "_is_in_memory", lambda _descriptor: False)
    with OutputFile(path, 1000):
        assert [other.stat().st_size for other in path.parent.iterdir()] == [1000]
    assert path.read_bytes() == bytes(1000)


def test_folder_that_cannot_be_flushed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = os.fsync

    def only_files(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        original(descriptor)

    monkeypatch.setattr(os, "fsync", only_files)
    write(path)
    check_untouched(path, NEW)


def test_limit_on_the_size_of_files(path: Path, before: bytes | None) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(NEW) - 1, limits[1]))
    try:
        with pytest.raises(OutputError, match="no space left"):
            write(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    check_untouched(path, before)


def test_full_disk(tmp_path: Path) -> None:
    small = tmp_path / "small"
    with mounted(small, "64k"):
        path = small / "out.gguf"
        write(path, OLD)
        with pytest.raises(OutputError, match="no space left for its 1,000,000 bytes"):
            OutputFile(path, 1_000_000).__enter__()
        check_untouched(path, OLD)
        # Without reserving, a disk that fills up shows at the write.
        with pytest.raises(OutputError, match="no space left"), OutputFile(path, 10) as output:
            output.write_at(0, bytes(1_000_000))
        check_untouched(path, OLD)
        write(path)
        check_untouched(path, NEW)


# Several files.


def write_all(folder: Path, n_files: int) -> None:
    with OutputFiles([OutputFile(folder / f"{i}", 9) for i in range(n_files)]) as outputs:
        for i, file in enumerate(outputs.files):
            file.write_at(0, b"%d" % i)


def test_several_files_appear_together(tmp_path: Path) -> None:
    write_all(tmp_path, 3)
    assert {path.name: path.read_bytes()[:1] for path in tmp_path.iterdir()} == {
        "0": b"0",
        "1": b"1",
        "2": b"2",
    }


@pytest.mark.parametrize("name", ["open", "ftruncate", "pwrite", "fsync", "close", "replace"])
@pytest.mark.parametrize("n_good", [0, 1, 2])
def test_none_of_several_files_appears_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, n_good: int
) -> None:
    original, n_calls = getattr(os, name), 0

    def fail(*arguments: Any) -> Any:
        nonlocal n_calls
        n_calls += 1
        if n_calls == n_good + 1:
            raise OSError(errno.EIO, "Input/output error")
        return original(*arguments)

    monkeypatch.setattr(os, name, fail)
    with pytest.raises(OutputError, match="cannot be written: Input/output error"):
        write_all(tmp_path, 3)
    assert n_calls > n_good
    monkeypatch.undo()
    assert not list(tmp_path.iterdir())


def test_more_files_than_may_be_open(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, limits[1]))
    try:
        with pytest.raises(OutputError, match=r"too many files are open.*write fewer parts"):
            write_all(tmp_path, 300)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert not list(tmp_path.iterdir())


# Paths that are refused.


def test_inputs_are_never_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    source, other = folder / "in.gguf", folder / "other.gguf"
    source.write_bytes(OLD)
    other.write_bytes(OLD)
    (tmp_path / "symbolic").symlink_to(source)
    (tmp_path / "chain").symlink_to("symbolic")
    (tmp_path / "hard").hardlink_to(source)
    (tmp_path / "alias").symlink_to(folder)
    monkeypatch.chdir(folder)
    spellings = [
        source,
        Path("in.gguf"),
        Path("./../folder/./in.gguf"),
        folder / ".." / "folder" / "in.gguf",
        tmp_path / "symbolic",
        tmp_path / "chain",
        tmp_path / "hard",
        tmp_path / "alias" / "in.gguf",
    ]
    missing = tmp_path / "missing"
    for output in spellings:
        for given in spellings:
            with pytest.raises(OutputError, match="is one of the inputs") as caught:
                OutputFile(output, 9, [other, missing, given])
            assert str(caught.value).startswith(f"{output}: ")
        OutputFile(output, 9, [other, missing])  # it is only the inputs that matter
    assert source.read_bytes() == OLD
    assert sorted(entry.name for entry in folder.iterdir()) == ["in.gguf", "other.gguf"]


def test_paths_that_cannot_be_written(tmp_path: Path) -> None:
    file, loop, pipe, link = (tmp_path / name for name in ("file", "loop", "pipe", "link"))
    file.write_bytes(OLD)
    loop.symlink_to(loop)
    os.mkfifo(pipe)
    link.symlink_to(tmp_path)
    dangling = tmp_path / "dangling"
    dangling.symlink_to(tmp_path / "nowhere" / "out")
    refused = {
        tmp_path: "no regular file",
        link: "no regular file",
        pipe: "no regular file",
        Path("/dev/null"): "no regular file",
        Path("/dev/zero"): "no regular file",
        Path(): "no regular file",
        file / "out": "Not a directory",
        tmp_path / "nowhere" / "out": "folder does not exist",
        dangling: "folder does not exist",
        loop: "cannot be written",
        tmp_path / "nul\0": "cannot be written",
        tmp_path / "lone\ud800": "cannot be written",
        tmp_path / ("x" * 300): "cannot be written",
        tmp_path / "line\nend" / "out": "folder does not exist",
    }
    names = sorted(entry.name for entry in tmp_path.iterdir())
    for path, words in refused.items():
        with pytest.raises(OutputError, match=words) as caught, OutputFile(path, 9):
            pytest.fail(f"{path} was opened")
        assert str(caught.value).isprintable()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == names
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)  # noqa: PTH116


def test_folder_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(OutputError, match=r"out: cannot be written: Permission denied"):
        OutputFile(tmp_path / "out", 9).__enter__()
