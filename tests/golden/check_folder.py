"""A folder as transformers loads it: its logits, and one step of LoRA training.

    python tests/golden/check_folder.py FOLDER LOGITS.npz

needs torch, transformers and peft. ``LOGITS.npz`` has ``tokens`` and what llama.cpp makes of them,
``logits`` (n_tokens, n_vocab), in float32 throughout. Fails if the folder's are off by more than a
thousandth, or training changes nothing.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
import transformers
from peft import LoraConfig, get_peft_model

MOST = 1e-3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("logits", type=Path)
    arguments = parser.parse_args()
    known = np.load(arguments.logits)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        arguments.folder, dtype=torch.float32, attn_implementation="eager"
    )
    tokens = torch.tensor(known["tokens"].astype(np.int64))[None]
    with torch.no_grad():
        found = model(tokens).logits[0].numpy()
    largest, off = np.abs(found).max(), np.abs(found - known["logits"])
    print(
        f"logits up to {largest:.3g}, off by at most {off.max():.2g}, {off.mean():.2g} on average"
    )
    assert off.max() <= MOST
    trained = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    optimizer = torch.optim.SGD(trained.parameters(), lr=1.0)
    before = trained(tokens, labels=tokens).loss
    before.backward()
    optimizer.step()
    after = trained(tokens, labels=tokens).loss
    print(f"loss {float(before):.4f}, after a step {float(after):.4f}")
    assert float(after) < float(before)


if __name__ == "__main__":
    main()
