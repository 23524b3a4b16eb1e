import numpy as np
import pytest

from recover._compiled.memory import aligned


@pytest.mark.parametrize("n", [0, 1, 16, 1000, 1 << 20])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
def test_begins_with_a_cache_line(n: int, dtype: type[np.generic]) -> None:
    arrays = [aligned(n, dtype) for _ in range(5)]
    for i, array in enumerate(arrays):
        assert array.ctypes.data % 64 == 0 or n == 0
        assert array.shape == (n,)
        assert array.dtype == dtype
        array[:] = i
    for i, array in enumerate(arrays):
        assert (array == i).all()
