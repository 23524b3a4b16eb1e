"""Parts of a plan as plain data, that JSON can hold, and back."""

import base64
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any

from recover.containers.model import Model
from recover.containers.places import FilePlan, Place
from recover.errors import PlanError
from recover.estimators.error_calibration import ErrorCalibration
from recover.evidence.buffer import Source
from recover.inputs.descent import Descent
from recover.merge.decide import Draft
from recover.merge.layout import SecondOutput
from recover.quants import TensorType

Record = dict[str, Any]


def tuples(value: Any) -> Any:
    """Lists within lists as tuples within tuples; anything else as it is."""
    return tuple(map(tuples, value)) if isinstance(value, list | tuple) else value


def plain(value: Any) -> Any:
    """Plain data as JSON gives it back: tuples within it as lists."""
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    return list(map(plain, value)) if isinstance(value, list | tuple) else value


def source_record(source: Source) -> Record:
    """A source; what is as usual is left out."""
    told = {
        each.name: value
        for each in fields(Source)
        if each.name != "type" and (value := getattr(source, each.name)) != each.default
    }
    return {"type": source.type.name, **told}


def read_source(record: Record, kind: TensorType) -> Source:
    """A source; `kind` is the type of the tensor that it stands for.

    Raises
    ------
    PlanError
        If its type has another name.
    """
    told = {name: tuples(value) for name, value in record.items()}
    if told.pop("type") != kind.name:
        raise PlanError(f"a tensor is {kind.name}, but {record['type']} was planned")
    return Source(kind, **told)


def error_calibration_record(error_calibration: ErrorCalibration | None) -> Record | None:
    """What expected errors are worth."""
    return None if error_calibration is None else asdict(error_calibration)


def read_error_calibration(record: Record | None) -> ErrorCalibration | None:
    """The opposite of `error_calibration_record`."""
    if record is None:
        return None
    return ErrorCalibration(**{name: tuples(value) for name, value in record.items()})


def descent_record(descent: Descent) -> Record:
    """Who was made from whom."""
    return asdict(descent)


def read_descents(records: Sequence[Record]) -> tuple[Descent, ...]:
    """The opposite of `descent_record`, of several."""
    return tuple(
        Descent(each["child"], tuple(each["parents"]), tuple(each["ways"])) for each in records
    )


def tensor_record(tensor: Draft) -> Record:
    """What happens to a tensor."""
    return vars(tensor) | {
        "descents": [descent_record(each) for each in tensor.descents],
        "sources": [source_record(each) for each in tensor.sources],
        "error_calibration": error_calibration_record(tensor.error_calibration),
        "places": [each.to_record() for each in getattr(tensor, "places", ())],
    }


def read_tensor(record: Record, models: Sequence[Model]) -> dict[str, Any]:
    """The opposite of `tensor_record`: attributes by name. `models` are the opened inputs."""
    sources = record["sources"]
    kinds = [models[i].tensors[record["name"]].type for i in record["used"] if sources]
    return {name: tuples(value) for name, value in record.items()} | {
        "descents": read_descents(record["descents"]),
        "sources": tuple(read_source(*each) for each in zip(sources, kinds, strict=True)),
        "error_calibration": read_error_calibration(record["error_calibration"]),
        "places": tuple(map(Place.from_record, record["places"])),
    }


def as_text(header: bytes) -> str:
    """The bytes of a header as text."""
    return base64.b64encode(header).decode()


def file_record(file: FilePlan, header: Callable[[bytes], str]) -> Record:
    """A file to be written; `header` says how its header is told (see `as_text`)."""
    record: Record = {"path": str(file.path), "header": header(file.header)}
    record["n_bytes"] = file.n_bytes
    if isinstance(file, SecondOutput):
        record["positions"] = dict(file.positions)
    return record


def read_file(record: Record) -> FilePlan:
    """The opposite of `file_record`."""
    header = base64.b64decode(record["header"], validate=True)
    file = FilePlan(Path(record["path"]), header, record["n_bytes"])
    if "positions" not in record:
        return file
    return SecondOutput(**vars(file), positions=MappingProxyType(dict(record["positions"])))
