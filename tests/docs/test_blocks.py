"""Every code block of README and docs is run, and prints what it says."""

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

import recover
from recover.cli import main
from recover.execution.tasks import carry_out
from recover.merge.tasks import tasks_of
from tests.conformance import checks
from tests.support.doc_blocks import PAGES, Block, blocks, indented, run_shell
from tests.support.http_files import served
from tests.support.interpreters import interpreter_with
from tests.support.kinds import scalar
from tests.support.models import ROOT

LANGUAGES = {"console", "sh", "python", "toml", "json"}
NEEDS = {"", "slow", "slurm", "gpu"}
_COMMAND = re.compile(r"^ *(\$ |(\S*/)?(recover|python3?|pip|bash|pytest|dask|srun) [-\w'.]+)")
_SYNOPSIS = re.compile(r"\b[A-Z]{4,}\b|\[-|\.\.\.")


def label(block: Block) -> str:
    return block.label


def test_all_blocks_are_of_a_kind_that_is_run() -> None:
    for block in blocks(needs=None):
        assert block.language in LANGUAGES, block.label
        assert block.needs in NEEDS, block.label


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_is_only_indented_is_no_command(page: Path) -> None:
    """But for synopses, whose options `test_every_option_is_there` looks at."""
    for block in indented(page):
        for line in block.splitlines():
            assert not _COMMAND.match(line) or _SYNOPSIS.search(line), line


@pytest.fixture
def here(place: Path, tmp_path: Path) -> Path:
    """A folder of its own with all that pages speak of."""
    for each in place.iterdir():
        (tmp_path / each.name).symlink_to(each)
    return tmp_path


def add_files(block: Block, here: Path) -> None:
    """What single pages speak of."""
    if "naive-Q8_0.gguf" in block.text:
        folder = here / "model-int4"
        (here / "model.safetensors").symlink_to(folder / "model.safetensors")
        assert main(["reblock", str(folder), "-o", str(here / "x.gguf"), "--arch", "llama"]) == 0
        plain, naive = (str(here / name) for name in ("plain.gguf", "naive-Q8_0.gguf"))
        assert main(["merge", str(here / "x.gguf"), "-o", plain, "--outtype", "f32"]) == 0
        assert main(["quantize", plain, "Q8_0", "-o", naive]) == 0
    if "Q5_K_M.gguf Q4_K_M.gguf" in block.text:
        for short, name in (("q5", "Q5_K_M"), ("q4", "Q4_K_M"), ("q2", "Q2_K")):
            (here / f"{name}.gguf").symlink_to(here / f"tiny-{short}.gguf")


@pytest.mark.inference
@pytest.mark.parametrize("block", blocks("sh"), ids=label)
def test_shell(block: Block, here: Path) -> None:
    add_files(block, here)
    if "make_grok_checkpoint" in block.text:
        (here / "grok-small").unlink()
    text = block.text.replace("--chunks 40", "--chunks 4")  # `test_figures` takes all
    if "hf://" not in text:
        done = run_shell(text, here)
    else:
        base = "/me/big-GGUF/resolve/main/big-"
        named = {f"{base}{kind}.gguf": here / f"tiny-llama-3m-{kind}.gguf" for kind in HUB}
        with served({name: path.read_bytes() for name, path in named.items()}) as hub:
            away = {"HF_ENDPOINT": hub.url, "NO_PROXY": "127.0.0.1"}
            done = run_shell(text, here, **away)
    assert done.returncode == 0, done.stderr[-2000:]


HUB = ("Q5_K_M", "Q4_K_M")


IN_A_CLONE = ("pip install .", "tests/run", "tests.benchmarks")


WHOLE_SUITE = "bash tests/run\n"
"""A block that would run all tests, this one among them."""


def test_the_whole_suite_is_run_elsewhere() -> None:
    """Before each change lands, by what runs the checks."""
    if not (ROOT / ".ci").exists():
        pytest.skip("this is no clone")
    assert WHOLE_SUITE in [each.text for each in blocks("sh", needs="slow")]
    assert (ROOT / ".ci" / "run").read_text().endswith("\n" + WHOLE_SUITE)


@pytest.mark.slow
@pytest.mark.parametrize(
    "block",
    [each for each in blocks("sh", needs="slow") if each.text != WHOLE_SUITE],
    ids=label,
)
def test_slow_shell(block: Block, here: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Those that set up an environment, read large models or train."""
    add_files(block, here)
    packages = {"lora.py": ["torch", "transformers", "peft"], "train-set": ["torch"]}
    needed = [each for word, names in packages.items() if word in block.text for each in names]
    python = interpreter_with(needed) if needed else ""
    text = block.text
    if "train-set" in text and not finds_gpu(python):
        text = text.replace("train-set", "train-set --device cpu --steps 3")
    if "lora.py" in block.text:
        files = [str(here / f"{name}.gguf") for name in ("q5", "q4", "q2")]
        assert main(["merge", *files, "-o", f"{here / 'model'}/"]) == 0
    if (
        "pip install ." in block.text
        or "tests/run" in block.text
        or "tests.benchmarks" in block.text
    ):
        assert in_a_clone(block.text, tmp_path_factory.mktemp("clone")) == 0
        return
    done = run_shell(text, here, **({"python": python} if python else {}))
    assert done.returncode == 0, done.stderr[-2000:]


def finds_gpu(python: str) -> bool:
    """Whether torch of an interpreter has one to learn on."""
    command = [python, "-c", "import sys, torch; sys.exit(not torch.cuda.is_available())"]
    return subprocess.run(command, check=False).returncode == 0


def in_a_clone(text: str, folder: Path) -> int:
    """Run what is to be typed in a clone of this repository, tests by their names alone."""
    clone = folder / "recover"
    left_out = shutil.ignore_patterns(".git", ".venv*", "__pycache__", ".*_cache", "dist")
    shutil.copytree(ROOT, clone, ignore=left_out)
    (folder / "shared").symlink_to(ROOT.parent / "shared")
    text = re.sub(r"bash tests/run( quick)?", r"bash tests/run\1 --collect-only -qq", text)
    programs = clone / ".venv" / "bin", Path(sys.executable).parent, os.environ["PATH"]
    environment = {**os.environ, "PATH": os.pathsep.join(map(str, programs))}
    command = ["bash", "-euo", "pipefail", "-c", text]
    return subprocess.run(command, cwd=clone, env=environment, check=False).returncode


@pytest.mark.slow
@pytest.mark.inference
@pytest.mark.parametrize("block", blocks("console", needs="slow"), ids=label)
def test_slow_console(block: Block, here: Path) -> None:
    """Figures may differ by 1%: another CPU adds up in another order."""
    command, _, expected = block.text.removeprefix("$ ").partition("\n")
    done = run_shell(command.replace("../shared", str(ROOT.parent / "shared")), here)
    assert done.returncode == 0, done.stderr[-2000:]
    printed = done.stdout.split()
    assert len(printed) == len(expected.split())
    for own, other in zip(printed, expected.split(), strict=True):
        own, other = own.strip("%").replace(",", ""), other.strip("%").replace(",", "")
        if re.fullmatch(r"[\d.]+", other):
            assert float(own) == pytest.approx(float(other), rel=0.01, abs=1e-5)
        else:
            assert own == other


@pytest.mark.slow
@pytest.mark.parametrize("block", blocks("sh", needs="slurm"), ids=label)
def test_cluster(block: Block, here: Path) -> None:
    """Jobs of the array one after the other, and a Dask cluster, on this machine."""
    text = block.text
    for kind, n_parts in (("Q5_K_M", 12), ("Q4_K_M", 9)):
        text = text.replace(f"/models/big-{kind}-00001-of-000{n_parts:02}", f"tiny-llama-3m-{kind}")
    text = text.replace("/scratch", str(here)).replace("N=32 ", "N=3 ").replace("-n 32 ", "")
    for name, kind in (("A", "Q5_K_M"), ("B", "Q4_K_M")):
        (here / f"{name}.gguf").symlink_to(here / f"tiny-llama-3m-{kind}.gguf")
    if "dask" in text:
        text = text.replace("-c 8 ", "-c 8 ").replace("--nthreads 8 ", "--nthreads 2 & ")
        text += "\nkill %1 %2"
        assert run_shell(text, here).returncode == 0
        assert (here / "out.gguf").exists()
        return
    for part in ("2", "1", "3"):
        job = {"SLURM_ARRAY_TASK_ID": part, "SLURM_CPUS_PER_TASK": "2"}
        done = run_shell(text, here, **job)
        assert done.returncode == 0, done.stderr[-2000:]
    assert (here / "big.gguf").exists()


@pytest.mark.parametrize("block", blocks(needs="gpu") + blocks("python", needs="slurm"), ids=label)
def test_what_takes_other_machines(block: Block) -> None:
    """What a block for a GPU or a cluster names is there, and its Python is Python."""
    if block.language == "python":
        compile(block.text, block.label, "exec")
        return
    for line in block.text.splitlines():
        python, dash, module, *options = shlex.split(line)
        assert (python, dash) == ("python", "-m")
        assert_has(module, options)


def assert_has(module: str, options: list[str]) -> None:
    """A module of ours is there, and knows its options by name."""
    found = importlib.util.find_spec(module)
    assert found is not None, module
    assert found.origin is not None
    text = Path(found.origin).read_text()
    for option in options:
        if option.startswith("--") and option != "--":
            assert f'"{option}"' in text, (module, option)


_NAMED = re.compile(r"`python -m (tests\.[\w.]+)([^`]*)`")
MENTIONED = sorted(
    {match for page in PAGES for match in _NAMED.findall(page.read_text().replace("\n", " "))}
)


@pytest.mark.parametrize(("module", "options"), MENTIONED)
def test_benchmarks_that_pages_name(module: str, options: str) -> None:
    assert_has(module, options.split())


def test_tests_that_pages_name() -> None:
    for page in PAGES:
        for path in re.findall(r"`[^`]*pytest[^`]* (tests/[\w./]+)[^`]*`", page.read_text()):
            assert (ROOT / path).exists(), (page.name, path)


def python_in(page: str, words: str) -> str:
    """The one block of Python of a page that has these words."""
    (found,) = (b for b in blocks("python") if b.page.name == page and words in b.text)
    return found.text


def test_a_task_on_its_own(tiny: list[Path], tmp_path: Path) -> None:
    plan = recover.plan_merge(tiny, tmp_path / "out.gguf")
    place = tmp_path / "place"
    place.write_bytes(bytes(plan.n_bytes))
    index = [each.action for each in plan.tensors].index("merge")
    record = next(tasks_of(plan, [index], [place])).to_record()
    names = {"record": record}
    exec(python_in("architecture.md", "carry_out"), names)
    assert np.any(np.fromfile(place, np.uint8))
    assert names["gave"] == carry_out(record)


def test_a_type_is_checked() -> None:
    text = python_in("types.md", "checks")
    kind = scalar("Q4_0")
    exec(text, {"MY_TYPE": kind})
    assert len(list(checks(kind))) > 5


def test_the_entry_point_of_a_type() -> None:
    (block,) = blocks("toml")
    found = tomllib.loads(block.text)["project"]["entry-points"]
    assert set(found) == {"recover.types"}


def test_the_estimator_of_a_page(tmp_path: Path, tiny: list[Path]) -> None:
    """As a package of its own, with an entry point."""
    (tmp_path / "plain_mean.py").write_text(
        python_in("contributing.md", "mean of all inputs, unweighted")
    )
    info = tmp_path / "plain_mean-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plain-mean\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[recover.estimators]\nplain = plain_mean\n")
    out = tmp_path / "out.gguf"
    files = " ".join(map(shlex.quote, map(str, tiny)))
    command = f"recover merge {files} -o {out} --method plain --outtype f32"
    paths = f"{tmp_path}{os.pathsep}{ROOT}"
    done = run_shell(command, tmp_path, PYTHONPATH=paths)
    assert done.returncode == 0, done.stderr
    name = "blk.0.attn_q.weight"
    mean = np.mean([recover.estimate([each], name, "best").mean for each in tiny], axis=0)
    merged = recover.estimate([out], name, "best").mean
    np.testing.assert_allclose(merged, mean, atol=1e-6)
