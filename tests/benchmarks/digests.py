"""SHA-256 of what the commands write: two versions of the program are compared by it.

``python -m tests.benchmarks.digests FOLDER`` quantizes the models in ../shared into FOLDER, runs
every command line of `COMMANDS` on them and prints one JSON object: a digest by output. What a
command prints with ``--json`` counts as an output, but for times and speeds.
"""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

SHARED = Path(__file__).resolve().parents[3] / "shared" / "models"
SMALL, TINY = SHARED / "llama-29m-bf16.gguf", SHARED / "tiny-llama-3m-bf16.gguf"
TYPES = (
    *("Q8_0", "Q6_K", "Q5_K", "Q4_K", "Q3_K", "Q2_K", "Q4_0", "Q4_1", "Q5_0", "Q5_1"),
    *("IQ4_NL", "IQ4_XS", "MXFP4", "F16", "F32"),
)
_VARYING = ("seconds", "weights_per_second")

MADE = {f"{t.lower()}.gguf": f"quantize {TINY} {t} -o {t.lower()}.gguf" for t in TYPES} | {
    f"s-{t.lower()}.gguf": f"quantize {SMALL} {t} -o s-{t.lower()}.gguf"
    for t in ("Q8_0", "Q6_K", "Q5_K", "Q4_K", "Q2_K")
}
"""The inputs of the commands below, and how they are made of the two models."""

COMMANDS = {
    "three": "merge s-q5_k.gguf s-q4_k.gguf s-q2_k.gguf -o {}.gguf --json",
    "three-linear": "merge s-q5_k.gguf s-q4_k.gguf s-q2_k.gguf -o {}.gguf --method linear --json",
    "three-midpoint": "merge s-q5_k.gguf s-q4_k.gguf s-q2_k.gguf -o {}.gguf --method midpoint",
    "three-best": "merge s-q5_k.gguf s-q4_k.gguf s-q2_k.gguf -o {}.gguf --method best --json",
    "narrow": "merge s-q8_0.gguf s-q6_k.gguf -o {}.gguf --json",
    "narrow-snap": "merge s-q8_0.gguf s-q6_k.gguf -o {}.gguf --snap auto --outtype bf16 --json",
    "narrow-linear": "merge s-q8_0.gguf s-q6_k.gguf -o {}.gguf --method linear --snap bf16",
    "five": "merge q8_0.gguf q6_k.gguf q5_k.gguf q4_k.gguf q2_k.gguf -o {}.gguf --json",
    "five-map": "merge q8_0.gguf q6_k.gguf q5_k.gguf q4_k.gguf q2_k.gguf -o {}.gguf --estimate map",
    "legacy": "merge q4_0.gguf q4_1.gguf q5_0.gguf q5_1.gguf -o {}.gguf --json",
    "legacy-linear": "merge q4_0.gguf q4_1.gguf q5_0.gguf q5_1.gguf -o {}.gguf --method linear",
    "codebooks": "merge iq4_nl.gguf iq4_xs.gguf q4_k.gguf -o {}.gguf --json",
    "codebooks-midpoint": "merge iq4_nl.gguf iq4_xs.gguf -o {}.gguf --method midpoint --json",
    "floats-of-4-bits": "merge mxfp4.gguf q3_k.gguf -o {}.gguf --json",
    "alone": "merge q2_k.gguf -o {}.gguf --json",
    "alone-bf16": "merge q5_k.gguf -o {}.gguf --outtype bf16",
    "order": "merge q2_k.gguf q4_k.gguf q5_k.gguf -o {}.gguf",
    "with-f16": "merge f16.gguf q4_k.gguf -o {}.gguf --json",
    "to-f32": "merge q3_k.gguf q6_k.gguf -o {}.gguf --outtype f32 --json",
    "to-q8": "merge q3_k.gguf q6_k.gguf -o {}.gguf --outtype q8_0 --json",
    "uncertainty": "merge q5_k.gguf q4_k.gguf -o {}.gguf --uncertainty {}-sigma.gguf --json",
    "uncertainty-linear": "merge q5_k.gguf q4_k.gguf -o {}.gguf --uncertainty {}-sigma.gguf"
    " --method linear",
    "split": "merge q5_k.gguf q4_k.gguf -o {}.gguf --split-max-size 2M --json",
    "resumed": "merge q5_k.gguf q3_k.gguf -o {}.gguf --resume",
    "some": "merge q5_k.gguf q4_k.gguf -o {}.gguf --tensors attn",
    "simulated": "merge q5_k.gguf q4_k.gguf -o {}.gguf --simulate 300000",
    "planned": "merge q5_k.gguf q4_k.gguf q8_0.gguf -o {}.gguf --dry-run --json",
    "weights": f"calibrate q5_k.gguf q4_k.gguf q2_k.gguf --truth {TINY} -o {{}}.json --json",
    "calibrated": "merge q5_k.gguf q4_k.gguf q2_k.gguf -o {}.gguf --calibration weights.json"
    " --method linear --json",
    "calibrated-posterior": "merge q5_k.gguf q4_k.gguf q2_k.gguf -o {}.gguf"
    " --calibration weights.json --json",
    "bounded": "bounds q5_k.gguf q4_k.gguf q2_k.gguf -o {}.safetensors --json",
    "bounded-f16": "bounds q8_0.gguf iq4_xs.gguf q4_0.gguf -o {}.safetensors --dtype f16",
    "bounded-summary": "bounds q6_k.gguf q5_1.gguf --summary --json",
    "verified": f"verify {TINY} q5_k.gguf q4_k.gguf --json",
    "inspected": "inspect s-q5_k.gguf s-q4_k.gguf s-q2_k.gguf --json",
    "inspected-mix": "inspect q8_0.gguf q4_0.gguf iq4_nl.gguf mxfp4.gguf --json",
    "evaluated": f"evaluate three.gguf s-q5_k.gguf --truth {SMALL} --json",
    "again": "quantize three.gguf Q4_K -o {}.gguf --json",
    "variant": f"quantize {TINY} Q4_K --quantizer k-lsq -o {{}}.gguf",
    "children": "merge again.gguf s-q5_k.gguf -o {}.gguf --force --json",
    "grid": "reblock q4_0-as-q8.gguf --second-hand -o {}.gguf --json",
}
"""Command lines by name; ``{}`` stands for the name."""


def main() -> None:
    folder = Path(sys.argv[1]).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    made = MADE | {
        "q4_0-as-q8.gguf": "quantize q4_0.gguf Q8_0 --allow-requantize -o q4_0-as-q8.gguf"
    }
    for name, line in made.items():
        if not (folder / name).exists():
            _run(folder, line)
    inputs = {name: _digest_of(folder / name) for name in made}
    outputs: dict[str, str] = {}
    for name, line in COMMANDS.items():
        before = set(folder.iterdir())
        printed = _run(folder, line.replace("{}", name))
        if "--json" in line:
            outputs[f"{name} --json"] = _digest(_without_times(printed))
        for path in sorted(set(folder.iterdir()) - before):
            data = path.read_bytes()
            if path.suffix == ".json":
                data = _without_times(data)
            outputs[path.name] = _digest(data)
    print(json.dumps({"inputs": inputs, "outputs": outputs}, indent=1))


def _run(folder: Path, line: str) -> bytes:
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run(
        [sys.executable, "-m", "recover", *line.split(), "-q"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": root},
        capture_output=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"recover {line}: status {done.returncode}: {done.stderr.decode()}")
    return done.stdout


def _without_times(document: bytes) -> bytes:
    def clean(value: object) -> object:
        if isinstance(value, dict):
            return {k: clean(v) for k, v in value.items() if k not in _VARYING}
        return [clean(each) for each in value] if isinstance(value, list) else value

    return json.dumps(clean(json.loads(document)), sort_keys=True).encode()


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _digest_of(path: Path) -> str:
    return _digest(path.read_bytes())


if __name__ == "__main__":
    main()
