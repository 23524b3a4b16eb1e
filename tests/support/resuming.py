"""Merges that stop on the way, and go on."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from recover.merge.execute import MergeResult, execute_merge
from recover.merge.plan import MergePlan, plan_merge


def make_plan(inputs: list[Path], folder: Path, **options: Any) -> MergePlan:
    if "uncertainty" in options:
        options["uncertainty"] = folder / options["uncertainty"]
    return plan_merge(inputs, folder / "out.gguf", **options)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def figures(result: MergeResult) -> dict[str, Any]:
    """What is reported, apart from the speed and the folder."""
    document = result.to_json()
    assert document.pop("seconds") > 0
    assert document.pop("weights_per_second") > 0
    return document | {"output": Path(document["output"]).name, "n_exact": result.n_exact}


def journal_of(folder: Path) -> Path:
    (path,) = folder.glob(".*.journal")
    return path


def finish(plan: MergePlan, **options: Any) -> tuple[MergeResult, list[str]]:
    """Carry out a plan; and what it says."""
    said: list[str] = []
    options = {"n_threads": 1, "resume": True, "force": True} | options
    return execute_merge(plan, tell=said.append, **options), said


def raise_(error: BaseException) -> Callable[..., Any]:
    def call(*_arguments: object, **_options: object) -> Any:
        raise error

    return call
