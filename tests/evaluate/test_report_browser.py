"""The report in a real browser, which must be installed: no errors, no requests, the same figures.

Run with ``pytest -m slow tests/evaluate/test_report_browser.py``.
"""

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from recover.cli import main
from tests.evaluate.test_plots import NAMES
from tests.evaluate.test_report import check_figures
from tests.support.html_pages import read_page
from tests.support.models import TINY

pytestmark = pytest.mark.slow

_OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-logging=stderr",
    "--host-resolver-rules=MAP * ~NOTFOUND",  # nothing leaves the machine
)


@dataclass(frozen=True)
class Visit:
    """What a browser made of a page."""

    dom: str
    console: list[str]
    requests: set[str]


def visit(path: Path, scratch: Path) -> Visit:
    """Open a file in Chromium."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    assert browser, "these tests need Chromium (Debian: apt-get install chromium)"
    log = scratch / "net.json"
    done = subprocess.run(
        [
            browser,
            *_OPTIONS,
            f"--user-data-dir={scratch / 'profile'}",
            f"--log-net-log={log}",
            "--dump-dom",
            path.as_uri(),
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    recorded = json.loads(log.read_text())
    started = recorded["constants"]["logEventTypes"]["URL_REQUEST_START_JOB"]
    jobs = [each.get("params", {}) for each in recorded["events"] if each["type"] == started]
    # What the browser asks for of its own accord has no origin.
    urls = {job["url"] for job in jobs if job.get("initiator") != "not an origin" and "url" in job}
    return Visit(done.stdout, console, {url for url in urls if not url.startswith("data:")})


def test_a_bad_page_is_noticed(tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text("<img src='http://127.0.0.1:9/x.png'><script>nonsense()</script>")
    seen = visit(page, tmp_path)
    assert any("nonsense is not defined" in line for line in seen.console)
    assert seen.requests == {"http://127.0.0.1:9/x.png"}


def test_the_report(tiny: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "report.html"
    command = ["evaluate", *map(str, tiny), "--truth", str(TINY), "--json"]
    assert main([*command, "--report", str(out)]) == 0
    document = json.loads(capsys.readouterr().out)
    seen = visit(out, tmp_path)
    assert seen.console == []
    assert seen.requests == set()
    page = read_page(seen.dom)
    check_figures(page, document)
    assert [each for each in page.ids if each in NAMES] == NAMES
    assert seen.dom.count("<svg") == len(NAMES)
