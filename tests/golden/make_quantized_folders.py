"""Whole folders that real programs quantize, of a Llama's folder in bfloat16.

    python tests/golden/make_quantized_folders.py SOURCE FOLDER NAME

SOURCE is what transformers can load. NAME is one of `MAKERS`; each needs packages that `recover`
and its other tests do not (PyTorch for the CPU is enough)::

    pip install torch transformers==4.57.6 accelerate bitsandbytes==0.50.2 hqq==0.2.8.post1 mlx[cpu]
    pip install torch transformers==4.57.6 accelerate torchao==0.18.0 optimum-quanto==0.2.7
    pip install llmcompressor==0.14.0.1 auto-round==0.15.1

the last line in an environment of its own.
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
    "torchao": ("torch", "transformers", "accelerate", "torchao"),
    "quanto": ("torch", "transformers", "optimum.quanto"),
    "autoround": ("torch", "transformers", "auto_round"),
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


def with_torchao(source: Path, folder: Path, name: str, **settings: Any) -> None:
    """As torchao quantizes a model for transformers, which saves FP8 alone as safetensors.

    Integers are flattened by torchao itself, as transformers does it with FP8.
    """
    import torch
    import torchao.quantization
    from safetensors.torch import save_file
    from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict
    from transformers import LlamaForCausalLM, TorchAoConfig

    if "weight_dtype" in settings:
        settings["weight_dtype"] = getattr(torch, settings["weight_dtype"])
        settings["granularity"] = torchao.quantization.PerGroup(settings["granularity"])
    how = getattr(torchao.quantization, name)(**settings)
    model = LlamaForCausalLM.from_pretrained(
        source,
        dtype=torch.bfloat16,
        device_map="cpu",
        quantization_config=TorchAoConfig(how),
    )
    if name.startswith("Float8"):
        model.save_pretrained(folder)
        return
    tensors, metadata = flatten_tensor_state_dict(model.state_dict())
    model.config.save_pretrained(folder)
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(tensors, folder / "model.safetensors", metadata)


def with_quanto(source: Path, folder: Path, kind: str) -> None:
    """As optimum-quanto quantizes and saves a model."""
    import optimum.quanto
    import torch
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
    quantized = optimum.quanto.QuantizedModelForCausalLM.quantize(
        model, weights=getattr(optimum.quanto, kind), exclude="lm_head"
    )
    quantized.save_pretrained(folder)


def with_auto_round(source: Path, folder: Path, scheme: str, layout: str, n_steps: int) -> None:
    """As AutoRound tunes a model, beside random tokens; with no steps it rounds plainly."""
    import torch
    from auto_round import AutoRound
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    model = LlamaForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
    n_tokens = model.config.vocab_size
    words = WordLevel({f"w{i}": i for i in range(n_tokens)}, unk_token="w0")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(words), unk_token="w0", pad_token="w0", eos_token="w0"
    )
    tuner = AutoRound(
        model,
        tokenizer,
        scheme=scheme,
        iters=n_steps,
        nsamples=16,
        seqlen=64,
        batch_size=4,
        device_map="cpu",
        dataset=[torch.randint(0, n_tokens, (1, 64)) for _ in range(16)],
    )
    tuner.quantize_and_save(str(folder.with_suffix(".made")), format=layout)
    (made,) = folder.with_suffix(".made").iterdir()
    made.rename(folder)


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
    "torchao_fp8": ("torchao", partial(with_torchao, name="Float8WeightOnlyConfig")),
    "torchao_int8": ("torchao", partial(with_torchao, name="Int8WeightOnlyConfig")),
    "torchao_int4": (
        "torchao",
        partial(with_torchao, name="IntxWeightOnlyConfig", weight_dtype="int4", granularity=128),
    ),
    **{kind: ("quanto", partial(with_quanto, kind=kind)) for kind in ("qint4", "qint8", "qfloat8")},
    "autoround": (
        "autoround",
        partial(with_auto_round, scheme="W4A16", layout="auto_round", n_steps=4),
    ),
    "autoround_awq": (
        "autoround",
        partial(with_auto_round, scheme="W4A16", layout="auto_awq", n_steps=0),
    ),
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
