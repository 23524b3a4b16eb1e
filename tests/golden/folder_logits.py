"""What transformers makes of a folder: tokens and logits, printed as JSON.

python tests/golden/folder_logits.py FOLDER TEXT.txt, where torch and transformers are installed.
"""

import json
import sys
from pathlib import Path

import torch
import transformers

if __name__ == "__main__":
    folder, text = Path(sys.argv[1]), Path(sys.argv[2]).read_text()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = tokenizer(text)["input_ids"]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0]
    print(json.dumps({"ids": ids, "logits": logits.tolist()}))
