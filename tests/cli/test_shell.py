"""The command line as people type it: help, slips, completion, quiet, logs."""

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from recover.cli import _console, main
from recover.cli._commands import build_parser
from recover.cli._completion import commands, options
from tests.support.models import TINY

RECOVER = (sys.executable, "-m", "recover")
COMMANDS = commands(build_parser())


def run(*arguments: object, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [*RECOVER, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=env)


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    """The lines on stderr of a command line that is wrong."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    printed = capsys.readouterr()
    assert (caught.value.code, printed.out) == (2, "")
    return printed.err.splitlines()


def test_bare_command_lists_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    listed = capsys.readouterr().out
    assert all(f"    {name}" in listed for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    texts = []
    for arguments in (["help", name], [name, "--help"]):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]
    assert texts[0].startswith(f"usage: recover {name}")


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (["mrege", "a.gguf"], "merge"),
        (["help", "inspct"], "inspect"),
        (["merge", "a.gguf", "-o", "b.gguf", "--metod", "linear"], "--method"),
        (["merge", "a.gguf", "-o", "b.gguf", "--calibraton=x"], "--calibration"),
        (["merge", "a.gguf", "-o", "b.gguf", "--method", "posteriour"], "posterior"),
        (["merge", "a.gguf", "-o", "b.gguf", "--outtype", "b16"], "bf16 or f16"),
        (["quantize", "a.gguf", "Q4KM", "-o", "b.gguf"], "Q4_K_M"),
        (["reblock", "a", "-o", "b.gguf", "--type", "mxpf4"], "mxfp4"),
        (["completion", "fsh"], "fish"),
        (["merge", "a.gguf", "--outptu", "b.gguf"], "--output"),
        (["evaluate", "a.gguf", "--thruth=b.gguf"], "--truth"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)
def test_slips(arguments: list[str], meant: str, capsys: pytest.CaptureFixture[str]) -> None:
    error, usage = refusal(capsys, *arguments)
    assert error.startswith("recover: error: ")
    assert f"did you mean {meant}" in error
    assert usage.startswith("usage: recover")


def test_errors_are_two_lines_whatever_was_given(capsys: pytest.CaptureFixture[str]) -> None:
    error, usage = refusal(capsys, "merge", "a.gguf", "--x\x1b[31m\ny")
    assert "\x1b" not in error
    assert usage == (
        "usage: recover merge INPUT... -o OUT [OPTION]... (more: recover merge --help)"
    )


def test_case_of_letters(tiny: list[Path], tmp_path: Path) -> None:
    files = [str(tmp_path / name) for name in ("a.gguf", "b.gguf")]
    some = ["--tensors", "blk.0.attn", *map(str, tiny)]
    assert main(["merge", *some, "-o", files[0], "--method", "LINEAR", "--outtype", "BF16"]) == 0
    assert main(["merge", *some, "-o", files[1], "--method", "linear", "--outtype", "bf16"]) == 0
    assert Path(files[0]).read_bytes() == Path(files[1]).read_bytes()
    assert main(["QUANTIZE", str(TINY), "q8_0", "-o", files[0], "--quantizer", "LLAMA.CPP"]) == 0


def test_quiet(tiny: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "out.gguf")
    inputs = [*map(str, tiny)]
    for arguments in (
        ["merge", *inputs, "-o", out],
        ["merge", *inputs, "-o", out, "--dry-run"],
        ["quantize", str(TINY), "Q4_K_M", "-o", out],
        ["bounds", *inputs, "-o", str(tmp_path / "b.safetensors")],
        ["export", inputs[0], "-o", str(tmp_path / "folder")],
        ["inspect", *inputs],
        ["evaluate", inputs[0], "--truth", str(TINY)],
    ):
        assert main([*arguments, "-q"]) == 0
        assert capsys.readouterr() == ("", "")
    assert main(["inspect", *inputs, "-q", "--json"]) == 0
    assert capsys.readouterr().out.startswith("{")
    assert main(["inspect", *inputs]) == 0  # heard again
    assert capsys.readouterr().out
    assert main(["inspect", "none.gguf", "-q"]) == 1
    assert capsys.readouterr().err.startswith("recover: error: ")


def test_progress_in_logs(
    tiny: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(_console, "_LOG_SECONDS", 0.0)
    assert main(["merge", *map(str, tiny), "-o", str(tmp_path / "out.gguf")]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert lines
    assert all(line.startswith("recover: merging: ") for line in lines)
    assert "% of 2.89M weights" in lines[0]
    args = argparse.Namespace(quiet=False)
    with _console.progress_bar(args, "reading", "tokens") as report:
        assert report is not None
        report(0, 100)
        report(50, 100)
    assert " s left" in capsys.readouterr().err.splitlines()[-1]


def test_colours(tiny: list[Path], tmp_path: Path) -> None:
    """Titles are bold on a terminal, unless somebody asks for none."""
    script = shutil.which("script")
    if script is None:
        pytest.fail("script (util-linux) makes the terminal")
    command = " ".join([*RECOVER, "merge", *map(str, tiny), "-o", str(tmp_path / "a.gguf"), "-q"])
    command = command.removesuffix(" -q") + " --tensors blk.0 2>/dev/null"
    for asked, has_codes in ((None, True), ("1", False)):
        environment = {k: v for k, v in os.environ.items() if k != "NO_COLOR"}
        environment |= {"TERM": "xterm"} | ({"NO_COLOR": asked} if asked else {})
        done = subprocess.run(
            [script, "-qec", command, "/dev/null"], capture_output=True, env=environment, check=True
        )
        assert (b"\x1b[1m" in done.stdout) == has_codes


def test_version_for_reports(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (
        ["--version", "--verbose"],
        ["-v", "--version"],
        ["merge", "--version", "-v"],
    ):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        lines = capsys.readouterr().out.splitlines()
        assert caught.value.code == 0
        assert lines[0].startswith("recover ")
        told = dict(line.split(": ", 1) for line in lines[1:])
        assert {"python", "system", "cpu", "package", "numba", "numpy", "cvxpy"} <= told.keys()


# Bash


def complete(script: str, *words: str) -> list[str]:
    """What bash offers for the last word."""
    line = " ".join(words)
    code = f"""{script}
COMP_WORDS=({" ".join(repr(word) for word in words)}); COMP_CWORD={len(words) - 1}
COMP_LINE={line!r}; COMP_POINT={len(line)}
_recover
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    done = subprocess.run(["bash", "-u", "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout.split()


@pytest.fixture(scope="module")
def bash() -> str:
    return run("completion", "bash").stdout


def test_bash_offers_commands(bash: str) -> None:
    assert complete(bash, "recover", "me") == ["merge"]
    assert set(complete(bash, "recover", "")) >= COMMANDS.keys()
    assert complete(bash, "recover", "help", "insp") == ["inspect"]


def test_bash_offers_values(bash: str) -> None:
    assert complete(bash, "recover", "merge", "--method", "po") == ["posterior"]
    assert complete(bash, "recover", "merge", "a.gguf", "--outtype", "b") == ["bf16"]
    assert "Q4_K_M" in complete(bash, "recover", "quantize", "a.gguf", "Q4")
    assert complete(bash, "recover", "merge", "--calibration", "") == []  # bash offers files
    assert complete(bash, "recover", "merge", "a") == []


@pytest.mark.parametrize("name", COMMANDS)
def test_bash_offers_every_option(name: str, bash: str) -> None:
    wanted = {option for each in options(COMMANDS[name]) for option in each.names}
    assert set(complete(bash, "recover", name, "-")) == wanted


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells(shell: str) -> None:
    script = run("completion", shell).stdout
    for name, parser in COMMANDS.items():
        assert name in script
        for each in options(parser):
            for option in each.names:
                said = option if shell == "zsh" else f"-l {option[2:]} "
                assert not option.startswith("--") or said in script
    assert "posterior" in script


@pytest.mark.skipif(shutil.which("fish") is None, reason="fish is not here")
def test_fish_offers(tmp_path: Path) -> None:
    script = run("completion", "fish").stdout
    code = f"{script}\ncomplete -C 'recover merge --method po'\ncomplete -C 'recover insp'"
    environment = os.environ | {"HOME": str(tmp_path)}
    done = subprocess.run(
        ["fish", "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    offered = [line.split("\t")[0] for line in done.stdout.splitlines()]
    assert offered == ["posterior", "inspect"]


@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not here")
@pytest.mark.parametrize("how", ["compinit", "nothing", "fpath"])
def test_zsh_reads_it(how: str, tmp_path: Path) -> None:
    """In ~/.zshrc after compinit or without it, and as a file of functions."""
    script = run("completion", "zsh").stdout
    assert script.startswith("#compdef recover\n")
    (tmp_path / "_recover").write_text(script)
    begin = {
        "compinit": f"autoload -U compinit; compinit -u -d {tmp_path}/dump\n{script}",
        "nothing": f"ZDOTDIR={tmp_path}\n{script}",
        "fpath": f"fpath=({tmp_path} $fpath); autoload -U compinit; compinit -u -d {tmp_path}/dump",
    }
    code = f"{begin[how]}\nwhence -w _recover; print $_comps[recover]"
    done = subprocess.run(["zsh", "-fc", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("_recover: function\n_recover\n", "")
