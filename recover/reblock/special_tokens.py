"""What a folder says of special tokens, and templates of chats, as GGUF's metadata.

What is taken from where is what ``SpecialVocab`` of gguf-py (gguf/vocab.py) takes: files that
llama.cpp's converter writes have the same entries.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recover._files import MissingError, UnreadableError, read_bytes
from recover._json import JSONError, parse_object
from recover._text import printable
from recover.containers.gguf.header import ValueType
from recover.containers.huggingface.vocabulary.metadata import SPECIAL
from recover.errors import ReblockError

Entry = tuple[str, ValueType, Any]

# By Hugging Face's names: GGUF's.
_IDS = SPECIAL | {"eot": "eot", "eom": "eom"}
_NAMES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
_ADDED = ("bos", "eos", "sep")
_MOST_BYTES, _MOST_VALUES = 1 << 27, 1 << 23
_LONGEST_TEMPLATE = 1 << 22


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object of a vocabulary's files; None if there is no such file.

    Raises
    ------
    ReblockError
        If it cannot be read.
    """
    try:
        raw = read_bytes(path, _MOST_BYTES)
        return parse_object(raw, most_bytes=_MOST_BYTES, most_values=_MOST_VALUES)
    except MissingError:
        return None
    except (UnreadableError, JSONError) as error:
        raise ReblockError(f"{printable(path)}: {error}") from None


def special_entries(
    folder: Path,
    tokenizer: Mapping[str, Any] | None,
    model_config: Mapping[str, Any],
    n_tokens: int,
) -> list[Entry]:
    """Metadata of special tokens.

    Parameters
    ----------
    folder : Path
        With ``tokenizer_config.json``, perhaps.
    tokenizer : mapping, optional
        ``tokenizer.json``.
    model_config : mapping
        ``config.json``.
    n_tokens : int
        Ids beyond are left out.

    Returns
    -------
    list of (str, ValueType, value)

    Raises
    ------
    ReblockError
        If a file cannot be read.
    """
    config = read_json(folder / "tokenizer_config.json") or {}
    found = _Special(config, tokenizer)
    ids: dict[str, int] = {}
    if config:
        added = [] if tokenizer is None else _dicts(tokenizer.get("added_tokens"))
        numbers: dict[Any, Any] = {}
        for each in added:
            numbers.setdefault(each.get("content"), each.get("id"))
        for name in found.names:
            text = found.config.get(f"{name}_token")
            text = text.get("content") if isinstance(text, dict) else text
            _put(ids, name, numbers.get(text) if isinstance(text, str) else None, n_tokens)
    nested = model_config.get("text_config")
    nested = nested if isinstance(nested, dict) else {}
    for name in found.names:
        key = f"{name}_token_id"
        own = model_config.get(key)
        _put(ids, name, nested.get(key) if own is None else own, n_tokens)
    entries: list[Entry] = [
        (f"tokenizer.ggml.{_IDS[name]}_token_id", ValueType.UINT32, number)
        for name, number in ids.items()
    ]
    entries += [
        (f"tokenizer.ggml.add_{name}_token", ValueType.BOOL, value)
        for name, value in found.adds.items()
    ]
    return [*entries, *(_templates(folder, config) if config else [])]


def _put(ids: dict[str, int], name: str, number: object, n_tokens: int) -> None:
    if type(number) is int and 0 <= number < n_tokens:
        ids.setdefault(name, number)


def _dicts(value: object) -> list[dict[str, Any]]:
    """The objects of a list; none of what is no list."""
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


class _Special:
    """Special tokens by the configuration, corrected by what is put around texts.

    Attributes
    ----------
    config : dict
        ``tokenizer_config.json`` with what else is found.
    names : tuple of str
        Those tokens that count.
    adds : dict of str to bool
        Whether a text gets them.
    """

    def __init__(self, config: Mapping[str, Any], tokenizer: Mapping[str, Any] | None) -> None:
        self.config = dict(config)
        self.names: tuple[str, ...] = _NAMES
        self.adds: dict[str, bool] = {}
        if tokenizer is not None:
            for name, other in (("bos", "cls"), ("eos", "sep")):
                self._replace(name, self._token(other))
            processor = tokenizer.get("post_processor")
            for each in self._processors(processor if isinstance(processor, dict) else {}):
                if each.get("type") == "RobertaProcessing":
                    self._take_roberta(each)
                elif each.get("type") == "TemplateProcessing":
                    self._take_template(each)
        for name in self.names if config else ():
            value = self.config.get(f"add_{name}_token")
            if isinstance(value, bool) and name in _ADDED:
                self.adds[name] = value

    @staticmethod
    def _processors(processor: dict[str, Any]) -> list[dict[str, Any]]:
        return _dicts(processor.get("processors", [processor]))

    def _token(self, name: str) -> Any:
        return self.config.get(f"{name}_token")

    def _replace(self, name: str, token: Any) -> None:
        """Use a token where none is stated."""
        if not self._token(name) and token:
            self.config[f"{name}_token"] = token

    def _take_roberta(self, processor: Mapping[str, Any]) -> None:
        self.adds |= dict.fromkeys(_ADDED, True)
        for name in ("cls", "sep"):
            pair = processor.get(name)
            self._replace(name, pair[0] if isinstance(pair, list) and pair else None)

    def _take_template(self, processor: Mapping[str, Any]) -> None:
        """What stands in front of a text, behind it, and between two."""
        single, pair = _dicts(processor.get("single")), _dicts(processor.get("pair"))
        first = _special(single[0]) if len(single) > 1 else None
        last = _special(single[-1]) if len(single) > 1 else None
        if first:
            if first not in (self._token("bos"), self._token("cls")):
                self._replace("bos", first)
                self._replace("cls", first)
            self.adds["bos"] = first in (self._token("bos"), self._token("cls"))
        if last:
            if last != self._token("eos"):
                # What was the end of a text is the end of a turn then.
                for name in ("eot", "eom"):
                    if name not in self.names:
                        self.names = (*self.names, name)
                        self.config[f"{name}_token"] = self._token("eos")
                        break
                self.config["eos_token"] = last
            self.adds["eos"] = True
        if pair:
            self._take_separator(pair, first, last)

    def _take_separator(
        self, pair: list[dict[str, Any]], first: str | None, last: str | None
    ) -> None:
        start = 1 if first and _special(pair[0]) == first else 0
        stop = len(pair) - (1 if last and _special(pair[-1]) == last else 0)
        middle = pair[start:stop]
        if not middle or _sequence(middle[0]) != "A" or _sequence(middle[-1]) != "B":
            return
        middle = middle[1:-1]
        if not middle:
            return
        ends = (self._token("sep"), self._token("eos"))
        adds = _special(middle[0]) in ends and bool(_special(middle[0])) and not last
        if len(middle) == 2 and _special(middle[1]):
            adds |= _special(middle[1]) in ends
        self.adds["sep"] = adds
        if adds:
            self._replace("sep", self._token("eos"))


def _special(item: Mapping[str, Any]) -> str | None:
    found = item.get("SpecialToken")
    name = found.get("id") if isinstance(found, dict) else None
    return name if isinstance(name, str) and name else None


def _sequence(item: Mapping[str, Any]) -> object:
    found = item.get("Sequence")
    return found.get("id") if isinstance(found, dict) else None


def _templates(folder: Path, config: Mapping[str, Any]) -> list[Entry]:
    """Templates of chats: those of the configuration, or of files of their own."""
    found = config.get("chat_template", _of_files(folder))
    if isinstance(found, str):
        return [("tokenizer.chat_template", ValueType.STRING, found)]
    main: str | None = None
    entries: list[Entry] = []
    names: list[str] = []
    for each in _dicts(found):
        raw, text = each.get("name"), each.get("template")
        name = "".join(c if c.isascii() and c.isalnum() else "_" for c in str(raw or ""))
        if not name or not isinstance(text, str):
            continue
        if name == "default":
            main = text
        elif name not in names:
            names.append(name)
            entries.append((f"tokenizer.chat_template.{name}", ValueType.STRING, text))
    if names:
        entries.append(("tokenizer.chat_templates", ValueType.STRING, names))
    if main is not None:
        entries.append(("tokenizer.chat_template", ValueType.STRING, main))
    return entries


def _of_files(folder: Path) -> str | list[dict[str, str]] | None:
    main = _text(folder / "chat_template.jinja")
    if main is None:
        found = read_json(folder / "chat_template.json") or {}
        text = found.get("chat_template")
        return text if isinstance(text, str) else None
    others = sorted((folder / "additional_chat_templates").glob("*.jinja"))
    if not others:
        return main
    named = [("default", main), *((path.stem, _text(path) or "") for path in others)]
    return [{"name": name, "template": text} for name, text in named]


def _text(path: Path) -> str | None:
    try:
        return read_bytes(path, _LONGEST_TEMPLATE).decode()
    except MissingError:
        return None
    except (UnreadableError, UnicodeDecodeError) as error:
        raise ReblockError(f"{printable(path)}: {error}") from None
