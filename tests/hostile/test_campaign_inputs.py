"""A great many damaged inputs: each is read or refused in a line, in little time and memory.

The default run is short. ``pytest -m slow tests/hostile/test_campaign_inputs.py`` is the whole
campaign; ``RECOVER_CAMPAIGN=0.1`` makes it a tenth as long, ``RECOVER_CAMPAIGN_SEED=7`` makes
another one.
"""

import contextlib
import io
import json
import os
import pickle
import re
import resource
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from recover.calibration.weights import load_calibration
from recover.cli import main
from recover.containers.gguf.header import parse_header
from recover.containers.safetensors.reader import open_safetensors
from recover.containers.safetensors.reader import parse_header as parse_safetensors
from recover.errors import RecoverError
from recover.quantize.imatrix import parse_imatrix
from recover.reblock.integers import Request
from recover.reblock.jax_pickle import parse_pickle
from recover.reblock.quantized_safetensors import open_integers
from tests.hostile import calibrations, imatrices, pickles, safetensors_files
from tests.hostile.builder import array, gguf, kv, scalar, string, tensor, u32
from tests.hostile.checks import check_line
from tests.hostile.deadline import deadline, limit
from tests.hostile.kinds import ARRAY, FLOAT64, INT32, Q8_0, STRING, UINT8, UINT32
from tests.hostile.mutations import mutated, mutated_json
from tests.support.gguf_files import stored, write_gguf

SCALE = float(os.environ.get("RECOVER_CAMPAIGN", "1"))
SEED = 1000 * int(os.environ.get("RECOVER_CAMPAIGN_SEED", "0"))
SECONDS = 5  # of the processor; the machine may be busy with other things
MOST_MEMORY = 300 << 20
_LEFT = re.compile(r"Traceback|\(unexpected")


def sizes(quick: int, whole: int) -> pytest.MarkDecorator:
    """A short run, and the whole one, which is slow."""
    full = pytest.param(max(1, int(whole * SCALE)), marks=pytest.mark.slow, id="whole")
    return pytest.mark.parametrize("n", [pytest.param(quick, id="short"), full])


@pytest.fixture(autouse=True)
def _deadline() -> Iterator[None]:
    """Of each input, not of the test."""
    with deadline(0):
        yield


@pytest.fixture
def folder() -> Iterator[Path]:
    """In memory, if there is such a file system: the campaign is not to wait for disks."""
    memory = Path("/dev/shm")
    path = Path(tempfile.mkdtemp(dir=memory if memory.is_dir() else None))
    yield path
    shutil.rmtree(path)


def run(
    inputs: Iterator[bytes], use: Callable[[bytes], object], capsys: pytest.CaptureFixture[str]
) -> None:
    """Use each input, and say how many were read and refused."""
    counts: Counter[str] = Counter()
    slowest, before = 0.0, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number, raw in enumerate(inputs):
        start = time.process_time()
        limit(SECONDS)
        try:
            use(raw)
            counts["read"] += 1
        except RecoverError as error:
            check_line(str(error)[:2000])
            counts["refused" if len(str(error)) < 2000 else "refused at length"] += 1
        except BaseException as error:
            error.add_note(f"input {number}: {raw[:2000]!r}")
            raise
        limit(0)
        slowest = max(slowest, time.process_time() - start)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
    with capsys.disabled():
        sys.stdout.write(
            f"\n{sum(counts.values()):,} inputs: {dict(counts)}; the slowest took {slowest:.3f} s;"
            f" memory grew by {grown >> 20} MiB\n"
        )
    assert not counts["refused at length"]
    assert grown < MOST_MEMORY


def headers() -> list[bytes]:
    """GGUF files of every kind of value."""
    entries = [
        kv("general.architecture", STRING, string("llama")),
        kv("general.alignment", UINT32, u32(32)),
        kv("a", ARRAY, array(STRING, [string("x"), string("\u00e9")])),
        kv("b", ARRAY, array(ARRAY, [array(INT32, [u32(1)]), array(UINT8, [b"\1", b"\2"])])),
        kv("c", FLOAT64, scalar(FLOAT64, 1.5)),
    ]
    tensors = [tensor("t", (8,)), tensor("u", (32, 2), Q8_0, 32), tensor("v", (2, 2, 2, 1), 0, 128)]
    return [gguf(entries, tensors, bytes(160)), gguf(entries[:1], tensors[:1], bytes(32)), gguf()]


@sizes(3000, 10**6)
def test_headers(n: int, capsys: pytest.CaptureFixture[str]) -> None:
    def use(raw: bytes) -> None:
        header = parse_header(raw)
        for entry in header.metadata.values():
            with contextlib.suppress(RecoverError):
                str(entry.value)

    run(mutated(headers(), n, SEED + 1), use, capsys)


@sizes(2000, 10**5)
def test_safetensors_headers(n: int, capsys: pytest.CaptureFixture[str]) -> None:
    entry, file = safetensors_files.entry, safetensors_files.file
    seeds = [
        file({"a": entry(), "__metadata__": {"format": "pt"}}),
        file({"a": entry(), "b": entry("BF16", [2, 2], [8, 16])}, bytes(16)),
        file({"a.weight": entry("I8", [4, 2], [0, 8]), "n": entry("F32", [], [8, 12])}, bytes(12)),
    ]
    run(mutated(seeds, n, SEED + 2), parse_safetensors, capsys)


@sizes(2000, 10**5)
def test_pickles(n: int, capsys: pytest.CaptureFixture[str]) -> None:
    weight = np.arange(128, dtype=np.int8).reshape(2, 64)
    seeds = [pickle.dumps(weight, protocol) for protocol in (2, 3, 4, 5)]
    seeds.append(pickle.dumps(np.arange(6).astype(ml_dtypes.bfloat16), 4))
    seeds.append(pickles.HEAD + pickles.array() + b".")
    run(mutated(seeds, n, SEED + 3), lambda raw: parse_pickle(np.frombuffer(raw, np.uint8)), capsys)


@sizes(2000, 10**5)
def test_importance_matrices(n: int, capsys: pytest.CaptureFixture[str]) -> None:
    legacy, modern, entry = imatrices.legacy, imatrices.modern, imatrices.entry
    seeds = [legacy(entry(), entry("b")), legacy(entry(n_calls=0), end=b""), modern()]

    def use(raw: bytes) -> None:
        for each in parse_imatrix(np.frombuffer(raw, np.uint8)).entries.values():
            assert np.isfinite(each.means()).all()

    run(mutated(seeds, n, SEED + 4), use, capsys)


# Each JSON input in its own place, where everything else is right.


def _calibration(folder: Path) -> tuple[bytes, Callable[[bytes], object]]:
    path = folder / "calibration.json"

    def use(raw: bytes) -> None:
        path.write_bytes(raw)
        load_calibration(path)

    return calibrations.GOOD.to_bytes(), use


def _model_folder(folder: Path, config: dict[str, Any]) -> Path:
    folder.mkdir()
    entry = safetensors_files.entry
    header = {"model.embed_tokens.weight": entry("BF16", [2, 2], [0, 8])}
    (folder / "a.safetensors").write_bytes(safetensors_files.file(header))
    index = {"weight_map": {"model.embed_tokens.weight": "a.safetensors"}, "metadata": {}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def _in_folder(model: Path, name: str) -> tuple[bytes, Callable[[bytes], object]]:
    path = model / name

    def use(raw: bytes) -> None:
        path.write_bytes(raw)
        open_integers(open_safetensors(model), Request(), "llama")

    return path.read_bytes(), use


CONFIG = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 2,
    "rms_norm_eps": 1e-5,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "original_max_position_embeddings": 8192,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
    },
    "quantization_config": {"quant_method": "gptq", "bits": 4},
}


@sizes(2000, 10**5)
@pytest.mark.parametrize("what", ["calibration", "index", "config"])
def test_json(what: str, n: int, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if what == "calibration":
        good, use = _calibration(folder)
    else:
        name = {"index": "model.safetensors.index.json", "config": "config.json"}[what]
        good, use = _in_folder(_model_folder(folder / "model", CONFIG), name)
    use(good)
    run(mutated_json(json.loads(good), n, SEED + 5), use, capsys)


# Real files through all commands.


def _models(folder: Path, rows: NDArray[np.float32]) -> dict[str, Path]:
    norm = stored("F32", np.abs(rows[0, :64]) + np.float32(0.5))
    weights = {
        "blk.0.attn_q.weight": rows[:4, :256],
        "blk.0.ffn_up.weight": rows[4:7, :256],
        "output.weight": rows[8:10, :512],
    }
    kinds = {
        "truth": ("F32", "F32", "F16"),
        "fine": ("Q8_0", "Q5_0", "Q6_K"),
        "middle": ("Q4_K", "Q4_0", "IQ4_XS"),
        "coarse": ("Q2_K", "Q4_1", "Q3_K"),
    }
    return {
        name: write_gguf(
            folder / f"{name}.gguf",
            {
                "blk.0.attn_norm.weight": norm,
                **{
                    tensor: stored(kind, x)
                    for (tensor, x), kind in zip(weights.items(), own, strict=True)
                },
            },
        )
        for name, own in kinds.items()
    }


def _commands(bad: Path, role: str, good: dict[str, Path], out: Path) -> list[list[str]]:
    """Every command on a damaged file that takes the place of one of the right ones."""
    path = {name: str(bad if name == role else each) for name, each in good.items()}
    truth, fine, middle, coarse = (path[name] for name in ("truth", "fine", "middle", "coarse"))
    return [
        ["merge", fine, middle, coarse, "-o", str(out)],
        ["merge", fine, middle, "-o", str(out), "--method", "midpoint", "--outtype", "q8_0"],
        ["inspect", str(bad)],
        ["inspect", fine, middle],
        ["bounds", fine, middle, "-o", str(out)],
        ["verify", truth, fine],
        ["evaluate", fine, middle, "--truth", truth],
        ["quantize", str(bad), "Q4_K", "-o", str(out), "--allow-requantize"],
        ["calibrate", fine, middle, "--truth", truth, "-o", str(out)],
        ["reblock", str(bad), "-o", str(out)],
        ["reblock", str(bad), "-o", str(out), "--second-hand"],
    ]


@sizes(40, 10**4)
def test_commands(
    n: int, folder: Path, real_rows: NDArray[np.float32], capsys: pytest.CaptureFixture[str]
) -> None:
    good = _models(folder, real_rows)
    work = folder / "work"
    work.mkdir()
    bad, out = work / "bad.gguf", work / "out.gguf"
    roles = list(good)
    status: Counter[int] = Counter()
    wrong: Counter[str] = Counter()
    slowest = 0.0
    for role, each in good.items():  # compiles everything
        bad.write_bytes(each.read_bytes())
        for command in _commands(bad, role, good, out):
            assert _attempt(command, work, bad, seconds=0)[1] == ""
    for number, raw in enumerate(
        mutated([each.read_bytes() for each in good.values()], n, SEED + 6)
    ):
        bad.write_bytes(raw)
        for command in _commands(bad, roles[number % len(roles)], good, out):
            start = time.process_time()
            code, complaint = _attempt(command, work, bad)
            slowest = max(slowest, time.process_time() - start)
            status[code] += 1
            if complaint:
                wrong[f"{command[0]}: {complaint[:300]} (first: file {number})"] += 1
    with capsys.disabled():
        sys.stdout.write(f"\n{n:,} files, {sum(status.values()):,} commands: {dict(status)};")
        sys.stdout.write(f" the slowest took {slowest:.2f} s; {len(wrong)} wrong\n")
    assert not wrong, "\n".join(list(wrong)[:40])


def _attempt(
    command: Sequence[str], work: Path, bad: Path, seconds: float = SECONDS
) -> tuple[int, str]:
    """The status of a command, and what is wrong with how it ended, if anything."""
    streams = io.StringIO(), io.StringIO()
    limit(seconds)
    try:
        with contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]):
            code = main([*command, "--threads", "1"])
    except BaseException as error:
        return -1, f"{type(error).__name__}: {error}"
    finally:
        limit(0)
    printed, told = (stream.getvalue() for stream in streams)
    found = _LEFT.search(told)
    is_printable = all(line.isprintable() for line in (printed + told).splitlines())
    written = [each for each in work.iterdir() if each != bad]
    complaint = ""
    if code not in (0, 1, 2):
        complaint = f"status {code}"
    elif found:
        complaint = told
    elif not is_printable:
        complaint = "something that cannot be printed was"
    elif code and written and command[0] != "bounds":  # written where inputs contradict each other
        complaint = f"{[each.name for each in written]} was left behind"
    elif code and command[0] != "verify" and not told.startswith("recover: "):
        complaint = f"no message with status {code}"
    for each in written:
        each.unlink()
    return code, complaint
