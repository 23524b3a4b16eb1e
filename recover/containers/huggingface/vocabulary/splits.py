r"""How llama.cpp cuts a text into words before it merges bytes, by ``tokenizer.ggml.pre``.

The facts are those of ``llama_vocab::impl::load`` and ``llm_tokenizer_bpe`` (src/llama-vocab.cpp),
and of ``unicode_regex_split`` (src/unicode.cpp) of llama.cpp. Where its expressions differ from
those of the original tokenizer, these here are llama.cpp's. They are written for Oniguruma, which
the library `tokenizers` searches with. This is said otherwise there:

- llama.cpp turns every white space beyond ASCII into one control character before it searches.
  Ranges that span such characters do not match them, so they are taken out of the ranges here.
- It has one category for all letters: ``\p{Lu}``, ``\p{Ll}`` and so on mean ``\p{L}``.
- ``(?=\p{L})[^a-z]`` is an intersection of classes here.
- ``\d`` is an ASCII digit.

Its table of characters is that of Unicode 15, Oniguruma's is newer. Text with younger characters
may be cut at other places.
"""

from typing import NamedTuple


class Split(NamedTuple):
    """How a text is cut.

    Attributes
    ----------
    patterns : tuple of str
        Regular expressions. Each one cuts the pieces that those before it left: what it matches is
        a piece, and so is what lies between two matches.
    takes_whole_words : bool
        Whether a piece that is a token is not taken apart (``ignore_merges``).
    adds_bos : bool
        Whether a text begins with the token for that, where the file does not say.
    of_bytes : bool
        Whether tokens are spelt in GPT-2's 256 characters for bytes. If not, they are spelt as they
        are, with a block for a space.
    """

    patterns: tuple[str, ...]
    takes_whole_words: bool = False
    adds_bos: bool = False
    of_bytes: bool = True


def _one_of(*patterns: str) -> str:
    return "|".join(patterns)


def _ranges(text: str) -> str:
    """The inside of a class of characters, from hexadecimal numbers as ``41-5a b5``."""
    return "".join("-".join(chr(int(end, 16)) for end in each.split("-")) for each in text.split())


def _cased(letters: str, end: str = "") -> str:
    """Words that change once from capitals to small letters, as far as ASCII tells them apart."""
    upper, lower = rf"[{letters}&&[^a-z]]", rf"[{letters}&&[^A-Z]]"
    return _one_of(
        rf"{_NO_LETTER}?{upper}*{lower}+{end}",
        rf"{_NO_LETTER}?{upper}+{lower}*{end}",
    )


_CONTRACTION = "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_NO_LETTER = r"[^\r\n\p{L}\p{N}]"
_WORD = _NO_LETTER + r"?\p{L}+"
_MARKED_WORD = _NO_LETTER + r"?[\p{L}\p{M}]+"
_DIGIT, _DIGITS = r"\p{N}", r"\p{N}{1,3}"
_ASCII_DIGITS = "[0-9][0-9][0-9]"
_SYMBOLS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_SYMBOLS_OR_SLASHES = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"
_LINE_ENDS, _SPACES = r"\s*[\r\n]+", r"\s+(?!\S)|\s+"
_LINES = r"[^\n]+|[\n]+"

_GPT2 = _one_of(
    r"'s|'t|'re|'ve|'m|'ll|'d", r" ?\p{L}+", r" ?\p{N}+", r" ?[^\s\p{L}\p{N}]+", _SPACES
)
_LLAMA3 = _one_of(_CONTRACTION, _WORD, _DIGITS, _SYMBOLS, _LINE_ENDS, _SPACES)
_QWEN2 = _one_of(_CONTRACTION, _WORD, _DIGIT, _SYMBOLS, _LINE_ENDS, _SPACES)
_GPT4O_END = _one_of(_DIGITS, _SYMBOLS_OR_SLASHES, _LINE_ENDS, _SPACES)

_CUT_SPACES = _one_of(*(rf"\s{{{n}}}(?!\S)" for n in (512, 256, 128, 64, 32, 16, 8, 4)))
_JAIS2 = _one_of(
    *(_CONTRACTION, _WORD, _DIGITS, _SYMBOLS, _LINE_ENDS, _CUT_SPACES),
    r"\s{1,2}(?!\S)|\s",
)
_EXAONE_MOE = _one_of(
    _CONTRACTION,
    _NO_LETTER + r"?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+",
    *(_DIGIT, r" ?[^\s\p{L}\p{N}]+[\r\n/]?", r"\s*[\r\n]", _SPACES),
)

# DeepSeek and its kin.
_EAST_ASIAN = f"[{_ranges('4e00-9fa5 3040-309f 30a0-30ff')}]+"
_CJK = rf"[{_ranges('4e00-9fa5 800-4e00 ac00-d7ff')}&&[^\s]]+"
_NAMED = r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"
_UNNAMED = r"[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
_MARKED = _one_of(_NAMED, _UNNAMED, r" ?[\p{P}\p{S}]+[\r\n]*", _LINE_ENDS, _SPACES)
_SPARK = _one_of(_NAMED, _UNNAMED, r" ?[\p{P}\p{S}]+", r"[\r\n]", _SPACES)
_PUNCTUATION = _ranges("21-2f 3a-7e ff01-ff0f ff1a-ff5e 2018-201f 3001-3002")
_CASED_LETTERS = _ranges(
    "41-5a 61-7a b5 c0-d6 d8-f6 f8-1ba 1bc-1bf 1c4-293 295-2af 370-373 376 377 37b-37d 37f 386"
    " 388-38a 38c 38e-3a1 3a3-3f5 3f7-481 48a-52f 531-556 10a0-10c5 13a0-13f5 13f8-13fd 1c90-1cba"
    " 1cbd-1cbf 1d00-1d2b 1d6b-1d77 1d79-1d9a 1e00-1f15 1f18-1f1d 1f20-1f45 1f48-1f4d 1f50-1f57"
    " 1f59 1f5b 1f5d 1f5f-1f7d 1f80-1fb4 1fb6-1fbc 1fbe 1fc2-1fc4 1fc6-1fcc 1fd0-1fd3 1fd6-1fdb"
    " 1fe0-1fec 1ff2-1ff4 1ff6-1ffc 2102 2107 210a-2113 2115 2119-211d 2124 2126 2128 212a-212d"
    " 212f-2134 2139 213c-213f 2145-2149 214e 2183 2184 2c00-2c7b 2c7e-2ce4 2ceb-2cee 2cf2 2cf3"
    " a640-a66d a680-a69b a722-a76f a771-a787 a78b-a78e ab70-abbf fb00-fb06 fb13-fb17 ff21-ff3a"
    " ff41-ff5a 10400-1044f 104b0-104d3 104d8-104fb 10c80-10cb2 10cc0-10cf2 118a0-118df 1e900-1e943"
)
_DEEPSEEK_LLM = (
    *(r"[\r\n]", rf"\s?[{_CASED_LETTERS}]+", rf"\s?[{_PUNCTUATION}]+"),
    *(r"\s+\z", _CJK, r"\p{N}+"),
)

# Digits are cut from the right; what lies in front of them belongs to the first group of them.
_FROM_RIGHT = r"[^\p{N}]*\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))|[^\p{N}]+"
_AFMOE = _ranges(
    "4e00-9fff 3400-4dbf 8c48-faff 3040-309f 30a0-30ff ff65-ff9f 2f00-2fdf e40-e7f e80-eff"
    " 1780-17ff 1000-109f aa60-aa7f a9e0-a9ff ac00-d7af 1100-11ff"
)
_YOUTU = _one_of(
    f"[{_ranges('ac00-d7a3 3131-318e')}]+",
    f"[{_ranges('ff01 2026 201c 201d 2018 2019 2014 ff1a ff1b ff0c 3001-303f fe30-fe4f')}]+",
    f"[{_ranges('3105-312f')}]+",
    _EAST_ASIAN,
)

# `unicode_cpt_is_han`, which is not all of \p{Han}.
_HAN = _ranges(
    "4e00-9fff 3400-4dbf 20000-2a6df 2a700-2b73f 2b740-2b81f 2b820-2ceaf 2ceb0-2ebef f900-faff"
    " 2f800-2fa1f"
)
_KIMI_K2 = _one_of(
    f"[{_HAN}]+",
    rf"{_NO_LETTER}?[\p{{L}}&&[^{_HAN}]]+{_CONTRACTION}?",
    *(_DIGITS, _SYMBOLS, _LINE_ENDS, _SPACES),
)
_BLOOM = rf" ?[^(\s|.,!?{_ranges('2026 3002 ff0c 3001 964 6d4 60c')})]+"
_CHAMELEON = (
    *("<sentinel:[0-9]+>", "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z", r"([\t\n]|    |  )"),
    *(_DIGIT, r"[\p{P}!-/:-@\[-`{-~]", _GPT2),
)

_WHOLE_LLAMA3 = Split((_LLAMA3,), takes_whole_words=True)

# What files call it, and what llama.cpp does.
_KINDS: tuple[tuple[str, Split], ...] = (
    ("llama3 llama-v3 llama-bpe falcon3 falcon-h1", _WHOLE_LLAMA3._replace(adds_bos=True)),
    ("pixtral midm-2.0 lfm2 jina-v5-nano", _WHOLE_LLAMA3._replace(adds_bos=True)),
    ("glm4 glm5", _WHOLE_LLAMA3),
    ("dbrx smaug-bpe chatglm-bpe", Split((_LLAMA3,))),
    (
        "minicpm5",
        Split(
            (_DIGITS, _LLAMA3.replace(_DIGITS, r"\p{N}+")),
            takes_whole_words=True,
        ),
    ),
    ("jais-2", Split((_JAIS2,))),
    ("qwen2 deepseek-r1-qwen kormo f2llmv2 megrez", Split((_QWEN2,))),
    ("stablelm2 hunyuan solar-open grok-2 bailingmoe bailingmoe2 llada-moe", Split((_QWEN2,))),
    (
        "qwen35",
        Split(
            (
                _one_of(
                    *(_CONTRACTION, _MARKED_WORD, _DIGIT, r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"),
                    *(_LINE_ENDS, _SPACES),
                ),
            )
        ),
    ),
    ("laguna", Split((_LINES, _QWEN2))),
    ("ufakzeka", Split((_one_of(_WORD, _DIGIT, _SYMBOLS, _LINE_ENDS, _SPACES),))),
    (
        "seed-coder",
        Split(
            (
                _one_of(
                    *(_CONTRACTION, _WORD, _DIGIT, r" ?[^\s\p{L}\p{N}\r\n]+"),
                    *(_LINE_ENDS, _SPACES),
                ),
            )
        ),
    ),
    ("exaone-moe", Split((_EXAONE_MOE,))),
    ("gpt-2 phi-2 jina-es jina-de gigachat jina-v2-es jina-v2-de a.x-4.0", Split((_GPT2,))),
    ("mellum modern-bert exaone4 jina-v1-en jina-v2-code roberta-bpe", Split((_GPT2,))),
    ("mpt olmo jais trillion granite-docling", Split((_GPT2,))),
    ("starcoder refact command-r smollm codeshell exaone", Split((_DIGIT, _GPT2))),
    ("minerva-7b mellum2", Split((_DIGIT, _GPT2))),
    ("falcon", Split((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, _ASCII_DIGITS))),
    ("default", Split((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", _ASCII_DIGITS))),
    ("deepseek-llm", Split(_DEEPSEEK_LLM)),
    ("deepseek-coder", Split((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK, _DIGIT))),
    ("deepseek-v3 hunyuan-dense joyai-llm hy_v4", Split((_DIGITS, _EAST_ASIAN, _MARKED))),
    ("spark2_5", Split((_DIGITS, _EAST_ASIAN, _SPARK, _DIGIT))),
    (
        "youtu",
        Split(
            (
                _YOUTU,
                _one_of(
                    *(f"{_MARKED_WORD}{_CONTRACTION}?", _DIGIT, _SYMBOLS_OR_SLASHES),
                    *(_LINE_ENDS, _SPACES),
                ),
            ),
            takes_whole_words=True,
        ),
    ),
    ("afmoe", Split((_FROM_RIGHT, f"[{_AFMOE}]+", _MARKED))),
    (
        "tiny_aya cohere2moe",
        Split((_FROM_RIGHT, _one_of(f"{_MARKED_WORD}{_CONTRACTION}?", _GPT4O_END))),
    ),
    (
        "gpt-4o llama4 kanana2 talkie minimax-m2",
        Split((_one_of(_cased(r"\p{L}", f"{_CONTRACTION}?"), _GPT4O_END),)),
    ),
    (
        "granite-embed-multi-97m",
        Split(
            (_one_of(_cased(r"\p{L}\p{M}", f"{_CONTRACTION}?"), _GPT4O_END),),
            takes_whole_words=True,
        ),
    ),
    (
        "tekken",
        Split(
            (_one_of(_cased(r"\p{L}"), _DIGIT, _SYMBOLS_OR_SLASHES, _LINE_ENDS, _SPACES),),
            takes_whole_words=True,
            adds_bos=True,
        ),
    ),
    ("kimi-k2", Split((_KIMI_K2,))),
    ("superbpe", Split((r"\p{N}+", "(?=([0-9]{3})+(?![0-9]))"))),
    ("poro-chat bloom gpt3-finnish", Split((_BLOOM,))),
    ("viking", Split((_BLOOM, _DIGIT))),
    ("chameleon", Split(_CHAMELEON, adds_bos=True)),
    ("gemma4 granite-embed-multi-311m", Split((_LINES,), adds_bos=True, of_bytes=False)),
    ("sarvam-moe", Split((_LINES,), of_bytes=False)),
)

SPLITS = {name: split for names, split in _KINDS for name in names.split()}
"""By what files have under ``tokenizer.ggml.pre``."""
