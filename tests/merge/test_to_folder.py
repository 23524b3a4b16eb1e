"""Merges whose output is a Hugging Face folder: the same weights as those of a GGUF file."""

import json
import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recover.cli import main
from recover.errors import OutputError, PlanError, UsageError
from recover.execution.tasks import Take, Task, Watch
from recover.export.execute import execute_export
from recover.export.plan import plan_export
from recover.merge.execute import execute_merge
from recover.merge.plan import MergePlan, plan_merge
from recover.merge.resume import Unfinished
from recover.merge.work import carry_out
from tests.support.gguf_files import Stored, read_weights, stored
from tests.support.golden_models import as_float32, read_arrays, rewrite, write_golden_gguf
from tests.support.interrupting import Interrupted, Workers
from tests.support.random_folders import NAMES, golden
from tests.support.resuming import finish, journal_of


def quantizations(name: str, folder: Path, **options: Any) -> list[Path]:
    """A model in Q8_0 and Q4_0; what is no matrix, or has odd rows, stays F32."""
    known = golden(name)
    exact = read_weights(write_golden_gguf(known, folder / f"{name}.gguf"))

    def encoded(kind: str, weights: np.ndarray) -> Stored:
        is_fit = weights.ndim > 1 and not weights.shape[-1] % 32
        return stored(kind if is_fit else "F32", weights)

    return [
        rewrite(
            known,
            folder / f"{name}-{kind}.gguf",
            {key: encoded(kind, weights) for key, weights in exact.items()},
            **options,
        )
        for kind in ("Q8_0", "Q4_0")
    ]


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_those_of_a_file(name: str, tmp_path: Path) -> None:
    inputs = quantizations(name, tmp_path)
    plan = plan_merge(inputs, f"{tmp_path}/out/", outtype="f32", method="linear")
    result = execute_merge(plan, n_threads=2)
    assert {each.plan.action for each in result.tensors} >= {"merge"}
    file = execute_merge(plan_merge(inputs, tmp_path / "out.gguf", outtype="f32", method="linear"))
    assert file.expected_mse_ratio == pytest.approx(result.expected_mse_ratio)
    execute_export(plan_export(file.plan.output, tmp_path / "exported", outtype="f32"))
    assert read_arrays(tmp_path / "out") == read_arrays(tmp_path / "exported")
    wanted = (tmp_path / "exported" / "config.json").read_bytes()
    assert (tmp_path / "out" / "config.json").read_bytes() == wanted


class ByRecord:
    """An executor that does tasks from their JSON, the last one first."""

    def run(self, tasks: Iterable[Task], take: Take, watch: Watch | None = None) -> None:
        for task in reversed(list(tasks)):
            take(task, carry_out(json.loads(json.dumps(task.to_record()))))
        if watch is not None:
            watch(0)


@pytest.mark.parametrize("name", ["gpt_oss", "deepseek_v3", "gemma2"])
def test_tasks_of_other_processes_and_plans_that_were_kept(name: str, tmp_path: Path) -> None:
    inputs = quantizations(name, tmp_path)
    plan = plan_merge(inputs, f"{tmp_path}/out/", max_shard_size=30_000, outtype="bf16")
    execute_merge(plan)
    for number, again in enumerate(
        [
            MergePlan.from_record(json.loads(json.dumps(plan.to_record()))),
            pickle.loads(pickle.dumps(plan)),
        ]
    ):
        assert again == plan
        (tmp_path / "out").rename(tmp_path / f"first{number}")
        execute_merge(again, executor=ByRecord(), resume=bool(number))
        assert read_arrays(tmp_path / "out") == read_arrays(tmp_path / f"first{number}")
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 3


@pytest.mark.parametrize("name", ["llama", "gpt_oss", "deepseek_v3"])
@pytest.mark.parametrize("is_damaged", [False, True])
def test_interrupted_merges_go_on(
    name: str, is_damaged: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = quantizations(name, tmp_path)
    wanted = execute_merge(plan_merge(inputs, f"{tmp_path}/whole/", max_shard_size=50_000))
    plan = plan_merge(inputs, f"{tmp_path}/out/", max_shard_size=50_000)
    workers = Workers()
    workers.stops_after = len(plan.tensors) - 5
    with monkeypatch.context() as patch:
        workers.watch(patch)
        with pytest.raises(Interrupted):
            finish(plan)
    assert not (tmp_path / "out").exists()
    journal_of(tmp_path)
    partial = Unfinished(plan).partial_folder
    assert partial.is_dir()
    if is_damaged:
        # gate and up of gpt-oss lie side by side: both are made again
        path = partial / plan.parts[plan.tensors[3].part].path.name
        raw = bytearray(path.read_bytes())
        raw[plan.tensors[3].position + 2] ^= 0xFF
        path.write_bytes(raw)
    again = Workers()
    with monkeypatch.context() as patch:
        again.watch(patch)
        result, said = finish(plan)
    assert any("going on with what is there" in each for each in said)
    assert ("damaged on the disk" in " ".join(said)) == is_damaged, said
    assert 5 <= len(again.done) <= 8
    assert result.expected_mse_ratio == wanted.expected_mse_ratio
    assert read_arrays(tmp_path / "out") == read_arrays(tmp_path / "whole")
    assert not list(tmp_path.glob(".*"))


def test_folder_that_is_there(tmp_path: Path) -> None:
    inputs = quantizations("llama", tmp_path)
    execute_merge(plan_merge(inputs, f"{tmp_path}/out/"))
    plan = plan_merge(inputs, tmp_path / "out", outtype="bf16")  # a folder by now
    with pytest.raises(OutputError, match="--force replaces it"):
        execute_merge(plan)
    assert {kind for kind, _, _ in read_arrays(tmp_path / "out").values()} == {"F16"}
    execute_merge(plan, force=True)
    assert {kind for kind, _, _ in read_arrays(tmp_path / "out").values()} == {"BF16"}
    with pytest.raises(OutputError, match="holds one of the inputs"):
        plan_merge([*inputs, tmp_path / "out"], tmp_path / "out")


def test_deviations_are_a_file_beside_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs, wanted = quantizations("llama", tmp_path), tmp_path / "wanted.gguf"
    execute_merge(plan_merge(inputs, tmp_path / "out.gguf", uncertainty=wanted))
    found = tmp_path / "found.gguf"
    plan = plan_merge(inputs, f"{tmp_path}/out/", uncertainty=found)
    workers = Workers()
    workers.stops_after = 5
    with monkeypatch.context() as patch:
        workers.watch(patch)
        with pytest.raises(Interrupted):
            execute_merge(plan)
    assert not found.exists()
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".*"))
    workers = Workers()
    workers.stops_after = 5
    with monkeypatch.context() as patch:
        workers.watch(patch)
        with pytest.raises(Interrupted):
            finish(plan)
    _, said = finish(plan)
    assert any("going on with what is there" in each for each in said)
    assert found.read_bytes() == wanted.read_bytes()
    assert read_arrays(tmp_path / "out")
    assert not list(tmp_path.glob(".*"))
    with pytest.raises(PlanError, match="is in the folder that is written"):
        plan_merge(inputs, tmp_path / "out", uncertainty=tmp_path / "out" / "u.gguf")


def test_names_of_outputs(tmp_path: Path) -> None:
    inputs = quantizations("llama", tmp_path)
    for name in ("out", "out.safetensors", "out.bin"):
        with pytest.raises(OutputError, match="neither a GGUF file nor a folder"):
            plan_merge(inputs, tmp_path / name)
    folder, file = f"{tmp_path}/out/", tmp_path / "out.gguf"
    wrong: list[tuple[Any, dict[str, Any], str]] = [
        (file, {"max_shard_size": 10}, "--max-shard-size is for folders"),
        (file, {"config": tmp_path}, "--config is for folders"),
        (folder, {"split_max_size": 10}, "--split-max-size is for GGUF files"),
        (folder, {"tensors": "x"}, "--tensors is for GGUF files"),
        (folder, {"outtype": "q8_0"}, "folders hold no q8_0"),
        (folder, {"max_shard_size": 0}, "too small"),
    ]
    for output, options, message in wrong:
        with pytest.raises(UsageError, match=message):
            plan_merge(inputs, output, **options)


def test_split_inputs_and_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quantizations("llama", tmp_path)
    (tmp_path / "split").mkdir()
    quantizations("llama", tmp_path / "split", split_max_tensors=7)
    parts = sorted((tmp_path / "split").glob("*-00001-of-*.gguf"))
    whole = sorted(tmp_path.glob("llama-Q*.gguf"))
    assert len(parts) == len(whole) == 2
    for inputs, out in ((parts, "a"), (whole, "b")):
        paths = [str(path) for path in sorted(inputs, reverse=True)]
        arguments = ["merge", *paths, "-o", f"{tmp_path}/{out}/"]
        assert main([*arguments, "--max-shard-size", "30KB", "--json"]) == 0
        document = json.loads(capsys.readouterr().out)
        assert document["output"] == f"{tmp_path}/{out}"
    assert read_arrays(tmp_path / "a") == read_arrays(tmp_path / "b")
    assert main([*arguments, "--dry-run"]) == 0
    assert "Plan for" in capsys.readouterr().out
    assert main([*arguments]) == 1
    assert "--force replaces it" in capsys.readouterr().err


def test_configuration_that_contradicts_the_model(tmp_path: Path) -> None:
    inputs = quantizations("llama", tmp_path)
    config = golden("llama")["config"] | {"num_attention_heads": 8}
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text(json.dumps(config))
    with pytest.raises(PlanError, match="contradicts the model"):
        plan_merge(inputs, f"{tmp_path}/out/", config=tmp_path / "other")


def test_norms_are_lowered_in_float32(tmp_path: Path) -> None:
    inputs = quantizations("gemma3_text", tmp_path)
    execute_merge(plan_merge(inputs, f"{tmp_path}/out/"))
    kind, _, data = read_arrays(tmp_path / "out")["model.norm.weight"]
    wanted = read_weights(inputs[0])["output_norm.weight"] - np.float32(1)
    np.testing.assert_array_equal(as_float32(kind, data), wanted)
