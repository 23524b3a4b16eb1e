"""What files promise costs nothing: memory and time of the commands on files with a huge header.

Time is that of the processor, which does not depend on what else the machine does.

Memory is what the process has of its own (``RssAnon``, without the pages of mapped files), asked
for every few milliseconds: what is allocated counts when it is touched, and to touch as much as is
allowed takes far longer than that.
"""

import json
import os
import select
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from recover.quants import type_by_id
from tests.hostile.builder import array, gguf, kv, string, tensor, u32, u64
from tests.hostile.kinds import ARRAY, F16, F32, Q8_0, STRING, UINT8
from tests.support.many import MANY, many
from tests.support.models import ROOT, TINY

MOST_MEMORY = 500 << 20
HANGS = 45  # seconds of a processor; figures are printed, not asked for
Q4_0 = 2
HUGE = 1 << 40
LLAMA = kv("general.architecture", STRING, string("llama"))

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(
        not Path("/proc/self/status").exists(), reason="memory is asked for as Linux tells it"
    ),
]


@pytest.fixture(autouse=True)
def _deadline() -> None:
    """Of each command, see below."""


def anonymous(process: int) -> int:
    """Bytes of memory that are a process's own."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon"))


COMMANDS = """
import json, os, sys, time
from recover.cli import main
told = os.fdopen(int(sys.argv[1]), "w")
for line in sys.stdin:
    before = time.process_time()
    try:
        status = main(json.loads(line))
    except SystemExit as leaving:
        status = leaving.code
    sys.stdout.flush()
    print(json.dumps([status, time.process_time() - before]), file=told, flush=True)
"""
"""A process that runs commands one after the other: to start one for each takes long."""


class Commands:
    """Runs the commands of a test in a process of their own."""

    def __init__(self) -> None:
        told, tells = os.pipe()
        self._told = os.fdopen(told)
        self._printed = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-c", COMMANDS, str(tells)],
            stdin=subprocess.PIPE,
            stdout=self._printed,
            stderr=self._printed,
            pass_fds=[tells],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            text=True,
        )
        os.close(tells)

    def close(self) -> None:
        """End the process."""
        with self._process, self._told, self._printed:
            pass  # it ends as it has read all commands

    def run(self, *arguments: str | Path) -> tuple[int, float, int, str]:
        """Status, seconds of processor time, the most memory, and the end of what was printed."""
        assert self._process.stdin is not None
        start, peak = self._printed.seek(0, os.SEEK_END), 0
        self._process.stdin.write(json.dumps([*map(str, arguments)]) + "\n")
        self._process.stdin.flush()
        while not select.select([self._told], [], [], 0.003)[0]:
            peak = max(peak, anonymous(self._process.pid))
        line = self._told.readline()
        status, seconds = json.loads(line) if line else (self._process.wait(), 0.0)
        self._printed.seek(start)
        return status, seconds, peak, self._printed.read()[-5000:]

    def __call__(
        self, status: int, *arguments: str | Path, expected: str = "", hangs: float = HANGS
    ) -> None:
        """Run a command; what it takes is printed (``pytest -s``)."""
        code, seconds, peak, printed = self.run(*arguments)
        assert code == status, printed
        assert expected in printed
        assert peak < MOST_MEMORY
        assert seconds < hangs
        assert "Traceback" not in printed
        assert "unexpected" not in printed
        sys.stdout.write(f"{arguments[0]}: {seconds:.1f} s, {peak >> 20} MiB\n")


@pytest.fixture
def check() -> Iterator[Commands]:
    """Runs commands, and asks for their status, time and memory."""
    commands = Commands()
    yield commands
    commands.close()


def sparse(path: Path, kind: int, *dims: int, name: str = "blk.0.ffn_up.weight") -> Path:
    """A model with one tensor of zeros, which take no space."""
    n_weights = 1
    for dim in dims:
        n_weights *= dim
    head = gguf([LLAMA], [tensor(name, dims, kind)])
    path.write_bytes(head)
    os.truncate(path, len(head) + type_by_id(kind).n_bytes(n_weights))
    return path


def test_a_norm_of_a_billion_weights(tmp_path: Path, check: Commands) -> None:
    one = sparse(tmp_path / "a.gguf", F32, 1 << 30, name="blk.0.attn_norm.weight")
    check(0, "inspect", one, expected="4,194,304 numbers in 1 F32 norms")
    check(0, "merge", one, "-o", tmp_path / "o.gguf", "--dry-run", expected="1 to copy")
    check(0, "quantize", one, "Q8_0", "-o", tmp_path / "o.gguf", "--dry-run")


@pytest.mark.parametrize("kind", [Q8_0, Q4_0])
def test_rows_that_no_matrix_has(kind: int, tmp_path: Path, check: Commands) -> None:
    one = sparse(tmp_path / "a.gguf", kind, 1 << 28, 1)
    check(0, "inspect", one)
    check(0, "merge", one, "-o", tmp_path / "o.gguf", "--dry-run")
    small = sparse(tmp_path / "b.gguf", kind, 1 << 21, 2)
    check(0, "bounds", small, "--summary")
    # A scale of 0 tells of Q8_0 alone how small the weights were.
    found = (0, "may lie in the cells") if kind == Q8_0 else (1, "nothing could be checked")
    check(found[0], "verify", small, small, expected=found[1])
    check(0, "evaluate", small, "--truth", small)
    check(0, "merge", small, "-o", tmp_path / "o.gguf")
    check(0, "reblock", small, "-o", tmp_path / "o.gguf")
    check(0 if kind == Q8_0 else 1, "reblock", small, "-o", tmp_path / "o.gguf", "--second-hand")


@pytest.mark.parametrize("outtype", ["Q4_0", "Q4_K", "F32"])
def test_quantizing_long_rows(outtype: str, tmp_path: Path, check: Commands) -> None:
    one = sparse(tmp_path / "a.gguf", F16, 1 << 25, 2)
    check(0, "quantize", one, outtype, "-o", tmp_path / "o.gguf")


@pytest.mark.slow
def test_quantizing_rows_of_half_a_billion_weights(tmp_path: Path, check: Commands) -> None:
    one = sparse(tmp_path / "a.gguf", F16, 1 << 28, 2)
    check(0, "quantize", one, "Q8_0", "-o", tmp_path / "o.gguf")


def test_long_rows_are_no_grids(tmp_path: Path, check: Commands) -> None:
    one = sparse(tmp_path / "a.gguf", F32, 1 << 24, 2)
    check(0, "reblock", one, "-o", tmp_path / "o.gguf", expected="are not looked at")


def test_an_importance_matrix_of_long_rows(tmp_path: Path, check: Commands) -> None:
    one = sparse(tmp_path / "a.gguf", F16, 1 << 24, 2)
    name, n = "blk.0.ffn_up.weight", 1 << 24
    tensors = [tensor(f"{name}.in_sum2", (n,)), tensor(f"{name}.counts", (1,), F32, 4 * n)]
    imatrix = tmp_path / "imatrix.gguf"
    head = gguf([], tensors)
    imatrix.write_bytes(head)
    os.truncate(imatrix, len(head) + 4 * n + 32)
    out = tmp_path / "o.gguf"
    check(1, "quantize", one, "Q4_0", "-o", out, "--imatrix", imatrix, expected="whole rows")
    check(0, "quantize", one, "Q4_K", "-o", out, "--imatrix", imatrix)


def test_many_keys_and_tensors(tmp_path: Path, check: Commands) -> None:
    n = MANY // 2
    one, two = many(tmp_path / "a.gguf", Q8_0, n=n), many(tmp_path / "b.gguf", Q4_0, n=n)
    out = tmp_path / "o.gguf"
    for command in (
        ("inspect", one),
        ("merge", one, two, "-o", out, "--dry-run", "--json"),
        ("merge", one, "-o", out),
        ("bounds", one, two, "--summary"),
        ("quantize", one, "Q4_0", "-o", out, "--dry-run", "--json", "--allow-requantize"),
    ):
        check(0, *command, hangs=HANGS // 3)  # more where time grows with keys times tensors


def test_a_truth_of_many_tensors(tmp_path: Path, check: Commands) -> None:
    numbers = np.random.default_rng(0).standard_normal(256).astype("<f2")
    truth = many(tmp_path / "truth.gguf", F16, (128, 2), numbers.tobytes(), MANY // 6)
    one, two = tmp_path / "one.gguf", tmp_path / "two.gguf"
    for command in (
        ("quantize", truth, "Q8_0", "-o", one),
        ("quantize", truth, "Q4_0", "-o", two),
        ("merge", one, two, "-o", tmp_path / "out.gguf"),
        ("calibrate", one, two, "--truth", truth, "-o", tmp_path / "calibration.json"),
    ):
        check(0, *command, hangs=HANGS // 2)


def _filled(n: int) -> bytes:
    """JSON whose values take much more memory than bytes in the file."""
    return b'{"a":[' + b"[]," * (n // 3) + b"[]]}"


@pytest.mark.parametrize("n", [1 << 22, 40_000_000])
def test_json_of_many_values(n: int, tmp_path: Path, check: Commands) -> None:
    raw = _filled(n)
    reason = "values" if n < 1 << 25 else "bytes"
    folder, out = tmp_path / "model", tmp_path / "o.gguf"
    folder.mkdir()
    file = folder / "model.safetensors"
    file.write_bytes(u64(len(raw)) + raw)
    check(1, "reblock", file, "-o", out, expected=reason)
    header = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    file.write_bytes(u64(len(header)) + header + bytes(8))
    for name in ("config.json", "model.safetensors.index.json"):
        (folder / name).write_bytes(raw)
        check(1, "reblock", folder, "-o", out, expected=reason)
    calibration = tmp_path / "c.json"
    calibration.write_bytes(raw)
    check(1, "merge", TINY, "-o", out, "--calibration", calibration, expected=reason)


HEADERS: dict[str, Callable[[], bytes]] = {
    "a text": lambda: gguf([string("k") + u32(STRING) + u64(HUGE)], n_entries=1),
    "an array": lambda: gguf([kv("k", ARRAY, array(UINT8, [], HUGE))], n_entries=1),
    "a text that is read": lambda: gguf(
        [string("general.architecture") + u32(STRING) + u64(1 << 26)], n_entries=1
    ),
    "texts that are read": lambda: gguf(
        [kv("general.architecture", ARRAY, array(STRING, [], 1 << 23))], n_entries=1
    ),
}


@pytest.mark.parametrize("what", HEADERS)
def test_headers_of_zeros(what: str, tmp_path: Path, check: Commands) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(HEADERS[what]())
    os.truncate(path, path.stat().st_size + HUGE + 64)
    check(1, "inspect", path, expected="not supported")


def test_a_vocabulary_of_many_tokens(tmp_path: Path, check: Commands) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    header = {"model.norm.weight": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
    raw = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(u64(len(raw)) + raw + bytes(8))
    config = {
        "hidden_size": 2,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "vocab_size": 1 << 31,
        "quantization_config": {"quant_method": "gptq"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    for tokenizer, reason in ((b"\n\0" * (1 << 22), "tokens"), (b"\n\3\n\1a", "2147483648 tokens")):
        (folder / "tokenizer.model").write_bytes(tokenizer)
        check(1, "reblock", folder, "-o", tmp_path / "o.gguf", "--arch", "llama", expected=reason)
