"""Integers with scales: damaged arrays give an error that names the module, or say something."""

import numpy as np
import pytest

from tests.support.encoders import compressed_tensors, hqq, mlx
from tests.support.foreign_modules import Array, heavy_tailed, module_of
from tests.support.hostile_modules import check_hostile, is_refused

WEIGHTS = heavy_tailed(np.random.default_rng(0), 8, 256)
FORMATS: dict[str, tuple[dict[str, Array], dict[str, object]]] = {
    "MLX4": (mlx.encode(WEIGHTS), {"group_size": 64}),
    "MLX3": (mlx.encode(WEIGHTS, 3), {"group_size": 64}),
    "int4": (compressed_tensors.encode(WEIGHTS), compressed_tensors.config()),
    "int4, asymmetric": (
        compressed_tensors.encode(WEIGHTS, symmetric=False)
        | {"weight_g_idx": (np.arange(256) % 2).astype(np.int32)},
        compressed_tensors.config(),
    ),
    "int8": (
        compressed_tensors.encode(WEIGHTS, 8, "channel", symmetric=False),
        compressed_tensors.config(),
    ),
    "HQQ4": (hqq.encode(WEIGHTS), {}),
    "HQQ3": (hqq.encode(WEIGHTS, 3, axis=0), {}),
}


@pytest.mark.parametrize("name", FORMATS)
def test_damaged_arrays(name: str) -> None:
    arrays, config = FORMATS[name]
    recipe = compressed_tensors.RECIPE if "int" in name else ""
    assert not is_refused(module_of(arrays, config, recipe))
    assert check_hostile(arrays, config=config, recipe=recipe) > 20
