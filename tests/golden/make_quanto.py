"""What optimum-quanto makes of weights on a CPU: ``pip install optimum-quanto gguf ml_dtypes``.

    python -m tests.golden.make_quanto MODEL.gguf

The model is an unquantized one. Groups are decoded from scales and shifts that are made float32;
quanto itself computes in the floats of the model.
"""

import sys
from collections import OrderedDict
from pathlib import Path

import ml_dtypes
import torch
from optimum.quanto import freeze, qfloat8, qint2, qint4, qint8, quantize

from tests.golden.foreign_files import Array, Case, save, some_weights

DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
CASES = {
    "qint2, BF16": (qint2, "BF16"),
    "qint4, BF16": (qint4, "BF16"),
    "qint4, F32": (qint4, "F32"),
    "qint8, BF16": (qint8, "BF16"),
    "qfloat8, BF16": (qfloat8, "BF16"),
    "qfloat8, F32": (qfloat8, "F32"),
}


def to_numpy(tensor: torch.Tensor) -> Array:
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
    if tensor.dtype == torch.float8_e4m3fn:
        return tensor.view(torch.uint8).numpy().view(ml_dtypes.float8_e4m3fn)
    return tensor.numpy()


def decode(state: dict[str, torch.Tensor]) -> torch.Tensor:
    """What the codes mean that quanto unpacks; it compiles a program for that first."""
    scale = state["layer.weight._scale"].float()
    if "layer.weight._shift" not in state:
        return state["layer.weight._data"].float() * scale
    packed = state["layer.weight._data._data"]
    n_bits = 8 * packed.shape[0] // scale.shape[0]
    codes = torch.ops.quanto.unpack(packed, n_bits).float()
    return (scale * codes - state["layer.weight._shift"].float()).reshape(16, 256)


def main() -> None:
    weights = torch.from_numpy(some_weights(Path(sys.argv[1]), 16, 256))
    cases = {}
    for label, (qtype, kind) in CASES.items():
        layers = OrderedDict(layer=torch.nn.Linear(256, 16))
        model = torch.nn.Sequential(layers).to(DTYPES[kind])
        model.layer.weight.data[:] = weights.to(DTYPES[kind])
        original = model.layer.weight.data.float().numpy().copy()
        quantize(model, weights=qtype)
        freeze(model)
        state = {name: each.detach() for name, each in model.state_dict().items()}
        arrays = {name.removeprefix("layer."): to_numpy(each) for name, each in state.items()}
        decoded = decode(state).numpy()
        cases[label] = Case(arrays, original, decoded, {"quant_method": "quanto"})
    save("quanto", cases)


if __name__ == "__main__":
    main()
