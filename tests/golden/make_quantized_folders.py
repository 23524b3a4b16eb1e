"""Whole folders that real programs quantize, of a Llama's folder in bfloat16.

    python tests/golden/make_quantized_folders.py SOURCE FOLDER NAME

SOURCE is what transformers can load. NAME is one of `MAKERS`; each needs packages that `recover`
and its other tests do not (PyTorch for the CPU is enough)::

    pip install torch transformers==4.57.6 accelerate bitsandbytes==0.50.2 hqq==0.2.8.post1 mlx[cpu]
    pip install llmcompressor==0.14.0.1

the second line in an environment of its own.
"""

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

PACKAGES = {
    "bitsandbytes": ("torch", "transformers", "accelerate", "bitsandbytes"),
    "hqq": ("torch", "transformers", "accelerate", "hqq"),
    "mlx": ("mlx",),
    "llmcompressor": ("torch", "transformers", "llmcompressor"),
}
"""What has to be importable."""


def with_transformers(source: Path, folder: Path, kind: str, **settings: Any) -> None:
    """As transformers quantizes a model while it is loaded."""
    import torch
    import transformers

    if "bnb_4bit_compute_dtype" in settings:
        settings["bnb_4bit_compute_dtype"] = torch.bfloat16
    model = transformers.LlamaForCausalLM.from_pretrained(
        source,
        dtype=torch.bfloat16,
        device_map="cpu",
        quantization_config=getattr(transformers, kind)(**settings),
    )
    model.save_pretrained(folder)


def with_mlx(source: Path, folder: Path, n_bits: int, group: int) -> None:
    """As mlx-lm writes a model: embeddings and the last layer are quantized, too."""
    import mlx.core as mx

    arrays: dict[str, Any] = {}
    for name, w in mx.load(str(source / "model.safetensors")).items():
        if w.ndim != 2:
            arrays[name] = w
            continue
        stem = name.removesuffix(".weight")
        made = mx.quantize(w, group_size=group, bits=n_bits)
        arrays |= zip((name, f"{stem}.scales", f"{stem}.biases"), made, strict=True)
    folder.mkdir()
    mx.save_safetensors(str(folder / "model.safetensors"), arrays, {"format": "mlx"})
    config = json.loads((source / "config.json").read_text())
    settings = {"group_size": group, "bits": n_bits, "mode": "affine"}
    config |= {"quantization": settings, "quantization_config": settings}
    (folder / "config.json").write_text(json.dumps(config, indent=4))


def with_llm_compressor(source: Path, folder: Path, scheme: str) -> None:
    """As llm-compressor rounds a model, without data; it writes a recipe as well."""
    import torch
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
    recipe = QuantizationModifier(targets="Linear", scheme=scheme, ignore=["lm_head"])
    oneshot(model=model, recipe=recipe, output_dir=str(folder))


_BITS = partial(with_transformers, kind="BitsAndBytesConfig")
MAKERS: dict[str, tuple[str, Callable[[Path, Path], None]]] = {
    "nf4_nested": (
        "bitsandbytes",
        partial(
            _BITS,
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype="bfloat16",
        ),
    ),
    "int8": ("bitsandbytes", partial(_BITS, load_in_8bit=True)),
    "hqq": ("hqq", partial(with_transformers, kind="HqqConfig", nbits=4, group_size=64)),
    "mlx4": ("mlx", partial(with_mlx, n_bits=4, group=64)),
    "mlx8": ("mlx", partial(with_mlx, n_bits=8, group=64)),
    **{
        scheme: ("llmcompressor", partial(with_llm_compressor, scheme=scheme))
        for scheme in ("W4A16", "FP8_DYNAMIC", "NVFP4A16")
    },
}
"""By name, the package, and what makes the folder."""


def main(source: str, folder: str, name: str) -> None:
    MAKERS[name][1](Path(source), Path(folder))


if __name__ == "__main__":
    main(*sys.argv[1:])
