"""Fine-tune a recovered model with LoRA: pip install torch transformers peft.

    recover merge q5.gguf q4.gguf q2.gguf -o model/
    python examples/lora.py model/ TEXT.txt -o adapter/ [--steps 50]

Prints the loss on the text's end, which is not trained on, before and after.
"""

import argparse
import random
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

N_TOKENS = 256  # of one sequence
N_AT_ONCE = 4  # sequences of one step


def sequences(tokenizer, text: str) -> list[list[int]]:
    """The tokens of a text, in parts of one length."""
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    size = N_TOKENS - len(begin)
    return [begin + ids[i : i + size] for i in range(0, len(ids) - size, size)]


def loss_on(model, part: list[list[int]]) -> float:
    """The mean loss on sequences."""
    model.eval()
    with torch.no_grad():
        losses = [model(input_ids=ids, labels=ids).loss for ids in torch.tensor(part).split(1)]
    return float(torch.stack(losses).mean())


def main() -> None:
    """Train, and say what it was worth."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=50)
    options = parser.parse_args()

    torch.manual_seed(0)
    draw = random.Random(0)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    lora = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(model, lora)
    model.print_trainable_parameters()

    found = sequences(tokenizer, options.text.read_text())
    n_kept = max(1, len(found) // 10)
    trained, kept = found[:-n_kept], found[-n_kept:]
    before = loss_on(model, kept)
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-3)
    for _ in range(options.steps):
        model.train()
        ids = torch.tensor(draw.choices(trained, k=N_AT_ONCE))
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    print(f"loss before {before:.4f}, after {options.steps} steps {loss_on(model, kept):.4f}")
    model.save_pretrained(options.output)
    tokenizer.save_pretrained(options.output)


if __name__ == "__main__":
    main()
