"""Lines of text in many scripts, for tokenizers: words, code, emoji, numbers, odd white space."""

import json
import random
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path

WORDS = Path(__file__).parents[1] / "golden" / "vocabularies" / "words.json"

_SPACES = [
    " ",
    "  ",
    "   ",
    " " * 7,
    " " * 40,
    "\t",
    "\n",
    "\r\n",
    "\n\n",
    "\n \n",
    "\u00a0",
    "\u3000",
]
_SPACES += [
    "\u2003",
    "\u2028",
    "\u0085",
    "\u200b",
    "\u202f",
    "\x0b",
    "\x0c",
    " \t ",
    "\r",
    "\t\t\t",
    "",
]
_MARKS = [
    *".,:;!?'\"()[]{}<>/\\|-_=+*&^%$#@~`",
    "...",
    "!!!",
    "--",
    "==",
    "->",
    "\u2014",
    "\u2026",
    "\u300c",
]
_MARKS += [
    "\u300d",
    "\u3002",
    "\u060c",
    "\u0964",
    "\u201c",
    "\u2019",
    "\u00bf",
    "\u20ac",
    "\u2261",
    "\u2581",
]
_EMOJI = ["\U0001f680", "\U0001f600", "\u2764\ufe0f", "\U0001f468\u200d\U0001f469\u200d\U0001f467"]
_EMOJI += [
    "\U0001f44d\U0001f3fd",
    "\U0001f1e9\U0001f1ea",
    "\u2705",
    "\U0001f999",
    "\U0001f636\u200d\U0001f32b\ufe0f",
]
_ENDS = ["'s", "'S", "'re", "'LL", "'d", "'T", "n't", "'ve", "'\u017f", "\u2019s"]
_MARKS_ON_LETTERS = ["\u0301", "\u0323", "\u093c", "\u064b", "\u0e49", "\u3099", "\u20d0", "\u0308"]


def lines(n: int, seed: int, special: Sequence[str] = ()) -> list[str]:
    """Lines of text, the same ones for the same numbers.

    Parameters
    ----------
    n : int
        How many.
    seed : int
        Of their choice.
    special : sequence of str
        Tokens that stand in some of them.

    Returns
    -------
    list of str
    """
    draw = random.Random(seed)
    words = json.loads(WORDS.read_text())
    code = list(_code(draw))
    kinds = [_sentence, _sentence, _sentence, _mixture, _mixture, _run, _noise]
    found = []
    for _ in range(n):
        which = draw.randrange(9)
        if which == 0:
            line = draw.choice(code)
        elif which == 1 and special:
            parts = [draw.choice(special), _sentence(draw, words), draw.choice(special), ""]
            line = draw.choice(["", " ", "\n"]).join(parts[draw.randrange(2) :])
        else:
            line = kinds[which % len(kinds)](draw, words)
        found.append(line)
    return found


def _code(draw: random.Random) -> Iterator[str]:
    """Pieces of the standard library's source."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    for path in draw.sample(files, 40):
        text = path.read_text(errors="replace").split("\n")
        for start in range(0, len(text), 3):
            yield "\n".join(text[start : start + draw.randrange(1, 5)])


def _sentence(draw: random.Random, words: dict[str, list[str]]) -> str:
    """Words of one language."""
    language = draw.choice(list(words))
    space = "" if language in ("zh", "ja", "th", "km") else " "
    parts = []
    for _ in range(draw.randrange(1, 12)):
        word = draw.choice(words[language])
        cased = (word, word, word.upper(), word.lower(), word.title())
        word = draw.choice(cased)
        parts.append(word + draw.choice(["", "", "", ",", ".", "!", *_ENDS[:3]]))
        if not draw.randrange(6):
            parts.append(str(draw.randrange(10 ** draw.randrange(1, 9))))
    return space.join(parts)


def _mixture(draw: random.Random, words: dict[str, list[str]]) -> str:
    """Words of all languages, marks, emoji and digits with any white space between them."""
    every = [draw.choice(words[draw.choice(list(words))]) for _ in range(6)]
    digits = [
        "7",
        "42",
        "123",
        "2024",
        "1234567",
        "\u0663\u0664",
        "\u0968\u0969",
        "\u00bd",
        "\uff11",
        "\u2167",
    ]
    parts = []
    for _ in range(draw.randrange(1, 14)):
        parts.append(
            draw.choice(
                [every, _MARKS, _EMOJI, digits, _ENDS, _MARKS_ON_LETTERS, every][draw.randrange(7)]
            )
        )
        parts.append(draw.choice(_SPACES) if draw.randrange(3) else "")
    return "".join(parts)


def _run(draw: random.Random, words: dict[str, list[str]]) -> str:
    """One character or word again and again."""
    part = draw.choice(
        [*"a=-#. \n\t_0/*", "ab", "ha", " \n", "\u3042", "\u0e01", draw.choice(words["en"])]
    )
    return (
        draw.choice(["", "x", " "])
        + part * draw.randrange(1, 50)
        + draw.choice(["", "y", " z", "\n"])
    )


def _noise(draw: random.Random, _words: dict[str, list[str]]) -> str:
    """Any characters that Unicode 13 has; surrogates are none."""
    blocks = [
        (32, 127),
        (160, 0x250),
        (0x370, 0x600),
        (0x900, 0xE80),
        (0x1E00, 0x2200),
        (0x3040, 0x3100),
    ]
    blocks += [(0x4E00, 0x9FA0), (0xAC00, 0xD7A4), (0x1F300, 0x1F650), (0x20000, 0x2A6D0), (0, 32)]
    low, high = draw.choice(blocks)
    return "".join(chr(draw.randrange(low, high)) for _ in range(draw.randrange(1, 25)))
