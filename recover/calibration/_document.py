"""Reading JSON that may hold anything: every refusal names the place and what belongs there."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from recover._files import UnreadableError, read_bytes
from recover._json import MOST_BYTES, JSONError, parse_object
from recover._text import quoted
from recover.errors import CalibrationError

_LONGEST_TEXT = 4096
_MOST_ITEMS = 100_000
_LARGEST_INTEGER = 2**63 - 1


def read_document(path: Path) -> dict[str, Any]:
    """The JSON object in a file; `CalibrationError` if there is none."""
    try:
        return parse_object(read_bytes(path, MOST_BYTES), strict=True)
    except UnreadableError as error:
        raise CalibrationError(str(error)) from None
    except JSONError as error:
        raise CalibrationError(f"is no calibration: {error}") from None


@dataclass(frozen=True)
class Field:
    """A value in a document, and where it stands."""

    value: Any
    place: str

    def __getitem__(self, key: str) -> "Field":
        """A member of an object, which must be there."""
        if not isinstance(self.value, dict):
            self._refuse("an object")
        if key not in self.value:
            where = f" in {self.place}" if self.place else ""
            raise CalibrationError(f"is damaged: there is no {quoted(key)}{where}")
        return Field(self.value[key], f"{self.place}.{key}" if self.place else key)

    def pairs(self) -> dict[str, "Field"]:
        """All members of an object."""
        if not isinstance(self.value, dict):
            self._refuse("an object")
        for key in self.value:
            Field(key, f"a key of {self.place}").text()
        return {key: self[key] for key in self.value}

    def items(self, fewest: int = 0, most: int = _MOST_ITEMS) -> list["Field"]:
        """The elements of an array."""
        if not isinstance(self.value, list) or not fewest <= len(self.value) <= most:
            what = f"{fewest}" if fewest == most else f"{fewest} to {most}"
            self._refuse(f"an array of {what} elements")
        return [Field(each, f"{self.place}[{i}]") for i, each in enumerate(self.value)]

    def text(self) -> str:
        """A string that is not empty or too long, and can be written again."""
        value = self.value
        if not isinstance(value, str) or not 0 < len(value) <= _LONGEST_TEXT:
            self._refuse("a text")
        if any("\ud800" <= character <= "\udfff" for character in value):
            self._refuse("a text without lone surrogates")
        return value

    def boolean(self) -> bool:
        """``true`` or ``false``."""
        if not isinstance(self.value, bool):
            self._refuse("true or false")
        return self.value

    def integer(self, least: int, most: int = _LARGEST_INTEGER) -> int:
        """A whole number."""
        whole = isinstance(self.value, int) and not isinstance(self.value, bool)
        if not whole or not least <= self.value <= most:
            self._refuse(f"a whole number from {least} to {most}")
        value: int = self.value
        return value

    def number(self, least: float = -math.inf, most: float = math.inf) -> float:
        """A finite number."""
        value = self.value
        usable = isinstance(value, int | float) and not isinstance(value, bool)
        if not usable or not least <= value <= most or not abs(value) < math.inf:
            self._refuse(f"a finite number from {least:g} to {most:g}")
        try:
            return float(value)
        except OverflowError:
            self._refuse(f"a finite number from {least:g} to {most:g}")

    def _refuse(self, wanted: str) -> NoReturn:
        shown = "an object" if isinstance(self.value, dict) else None
        if isinstance(self.value, list):
            shown = "an array"
        if shown is None:
            shown = quoted(self.value) if isinstance(self.value, str) else repr(self.value)
        raise CalibrationError(f"is damaged: {quoted(self.place)} is {shown}, but must be {wanted}")
