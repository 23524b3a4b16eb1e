"""Makes the sample of folders: ``python -m tests.golden.make_sample_folders``.

That is ``recover/data/sample_folders.safetensors`` (see `recover.estimators._folder_sample`). The
weights are those of `tests.golden.make_sample`, rounded to BF16 and encoded by
`tests.support.encoders`.
"""

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from recover.containers.huggingface.formats import read_matrix
from recover.estimators._folder_sample import COLUMNS, SETTINGS
from recover.quants import F32Array
from tests.golden import make_sample
from tests.support.encoders import (
    autoround,
    awq,
    bitsandbytes,
    compressed_tensors,
    fp4,
    fp8,
    gptq,
    hqq,
    mlx,
    quanto,
    torchao,
)
from tests.support.foreign_modules import Array, module_of, rounded
from tests.support.hf_folders import write_arrays
from tests.support.layer_inputs import synthetic_inputs

SAMPLE = Path(make_sample.SAMPLE).with_name("sample_folders.safetensors")
_N_TOKENS = 600
_FITTED = {"config_groups": {"group_0": {"weights": {"observer": "memoryless_minmax"}}}}
# Of scales that are found beside Q4_K, relative.
_SHARED_DEVIATION, _NORM_DEVIATION = 0.0045, 0.0004


class Setting(NamedTuple):
    """An encoder of weights, and what a folder says of it."""

    encode: Callable[[F32Array], Mapping[str, Array]]
    config: Mapping[str, Any] = {}
    recipe: str = ""


def _inputs(row_length: int) -> F32Array:
    """What layers with the sample's weights are given."""
    return synthetic_inputs(
        np.random.Generator(np.random.Philox(key=make_sample.SEED)), _N_TOKENS, row_length
    )


def _gptq(n_bits: int) -> Setting:
    def encode(w: F32Array) -> Mapping[str, Array]:
        return gptq.pack(gptq.quantize(w, _inputs(w.shape[1]), n_bits), n_bits)

    return Setting(encode, {"quant_method": "gptq", "bits": n_bits, "group_size": 128})


def _exl2(n_bits: int) -> Setting:
    return Setting(lambda w: gptq.exl2(w, _inputs(w.shape[1]), (n_bits,)).arrays)


def _awq(w: F32Array) -> Mapping[str, Array]:
    """Half of the groups of columns has scales that two matrices share, as half a llama's weights.

    Those are known to half a percent (see `recover.inputs.scaled.shared_scales`), the others as
    those that a norm tells.
    """
    arrays, columns = awq.quantize_matrix(w, _inputs(w.shape[1]))
    generator = np.random.Generator(np.random.Philox(key=make_sample.SEED))
    is_shared = np.arange(columns.size) // awq.GROUP % 2 == 1
    deviations = np.where(is_shared, _SHARED_DEVIATION, _NORM_DEVIATION)
    off = deviations * generator.standard_normal(columns.size)
    found = np.stack([columns * (1 + off), deviations])
    return {**arrays, COLUMNS: found.astype(np.float32)}


def _nested(kind: str) -> Setting:
    """Largest magnitudes are known to 0.4%, as those of trained weights are.

    Neighbouring rows of these are alike; those of the sample are not, and bitsandbytes' own levels
    would leave twice as much open.
    """
    levels = np.linspace(-1, 1, 256, dtype=np.float32)
    return Setting(partial(bitsandbytes.encode, kind=kind, levels=levels))


def _int(n_bits: int, group: int | str, *, is_known: bool = True) -> Setting:
    encode = partial(compressed_tensors.encode, n_bits=n_bits, group=group)
    recipe = compressed_tensors.RECIPE if is_known else ""
    return Setting(encode, compressed_tensors.config("minmax"), recipe)


def _mlx(n_bits: int) -> Setting:
    return Setting(partial(mlx.encode, n_bits=n_bits), {"group_size": 64})


def _hqq(n_bits: int, axis: int = 1) -> Setting:
    return Setting(partial(hqq.encode, n_bits=n_bits, axis=axis))


ALL: dict[str, Setting] = {
    "FP8-block": Setting(fp8.encode),
    "FP8-row": Setting(partial(fp8.encode, extent="row", arithmetic="BF16")),
    "FP8-e5m2": Setting(partial(fp8.encode, extent="row", kind="e5m2")),
    "NF4-nested": _nested("nf4"),
    "NF4": Setting(partial(bitsandbytes.encode, nested=False)),
    "FP4-nested": _nested("fp4"),
    "NVFP4": Setting(fp4.encode_nvfp4),
    "NVFP4-minmax": Setting(fp4.encode_nvfp4, _FITTED),
    "MXFP4": Setting(fp4.encode_mxfp4),
    "LLM.int8": Setting(bitsandbytes.encode_int8),
    "INT4-g128": _int(4, 128),
    "INT4-g128-unknown": _int(4, 128, is_known=False),
    "INT8-rows": _int(8, "channel"),
    "MLX2-g64": _mlx(2),
    "MLX3-g64": _mlx(3),
    "MLX4-g64": _mlx(4),
    "MLX6-g64": _mlx(6),
    "MLX8-g64": _mlx(8),
    "HQQ2-g64": _hqq(2),
    "HQQ3-g64": _hqq(3),
    "HQQ4-g64": _hqq(4),
    "HQQ8-g64": _hqq(8),
    "HQQ4-g64-strided": _hqq(4, 0),
    "torchao-int8": Setting(torchao.encode),
    "torchao-int4-g32": Setting(partial(torchao.encode, n_bits=4, group=32, scale_kind="BF16")),
    "qint4": Setting(quanto.encode_groups),
    "qint8": Setting(quanto.encode_rows),
    "AutoRound4": Setting(autoround.encode, autoround.config()),
    "AutoRound4-untuned": Setting(partial(autoround.encode, reach=0.0), autoround.config(0)),
    "EXL2-4": _exl2(4),
    "EXL2-5": _exl2(5),
    "GPTQ2-g128": _gptq(2),
    "GPTQ4-g128": _gptq(4),
    "GPTQ3-g128": _gptq(3),
    "GPTQ8-g128": _gptq(8),
    "AWQ4-g128": Setting(_awq, {"quant_method": "awq"}),
}


def modules(name: str, seed: int = make_sample.SEED) -> dict[str, Array]:
    """The arrays of a setting's two modules."""
    halves = np.split(rounded(make_sample.draw(seed), "BF16"), 2)
    return {
        f"{name}.{half}.{leaf}": array
        for half, x in enumerate(halves)
        for leaf, array in ALL[name].encode(x).items()
    }


def _type_of(name: str, arrays: Mapping[str, Array]) -> str:
    own = {
        array_name.removeprefix(f"{name}.0."): array
        for array_name, array in arrays.items()
        if array_name.startswith(f"{name}.0.")
    }
    own.pop(COLUMNS, None)
    matrix = read_matrix(module_of(own, ALL[name].config, ALL[name].recipe))
    assert matrix is not None
    return matrix.type.name


def main() -> None:
    arrays: dict[str, Array] = {}
    settings = {}
    for name, setting in ALL.items():
        own = modules(name)
        arrays |= own
        settings[name] = {
            "type": _type_of(name, own),
            "config": setting.config,
            "recipe": setting.recipe,
        }
        print(name, settings[name]["type"], sum(a.nbytes for a in own.values()), flush=True)
    write_arrays(SAMPLE, arrays, {SETTINGS: json.dumps(settings)})


if __name__ == "__main__":
    main()
