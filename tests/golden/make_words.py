"""Words of 18 languages in 16 scripts, from Unicode's CLDR.

Run where `Babel` 2.17 is installed: python -m tests.golden.make_words. The words are those of the
names of countries, languages, months and days; CLDR is under the Unicode licence.
"""

import json
from pathlib import Path
from typing import Any

NAMES = "en de vi ru el ar he hi bn ta th ka hy am km ja ko zh"
N_WORDS = 160
OUT = Path(__file__).parent / "vocabularies" / "words.json"


def words(language: str) -> list[str]:
    from babel import Locale

    locale = Locale.parse(language)
    texts = [*locale.territories.values(), *locale.languages.values()]
    texts += [name for width in ("wide", "abbreviated") for name in _names(locale, width)]
    found = dict.fromkeys(word for text in texts for word in text.split())
    every = max(1, len(found) // N_WORDS)
    return list(found)[::every][:N_WORDS]


def _names(locale: Any, width: str) -> list[str]:
    months = locale.months["format"][width]
    days = locale.days["format"][width]
    return [*months.values(), *days.values()]


if __name__ == "__main__":
    found = {language: words(language) for language in NAMES.split()}
    OUT.write_text(json.dumps(found, ensure_ascii=False, indent=0) + "\n")
    print(OUT, sum(map(len, found.values())))
