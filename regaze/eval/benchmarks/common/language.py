"""Words of English captions, by the libraries that the official scorers use.

Tokens, part-of-speech tags and lemmas come from NLTK (with its data packages punkt_tab,
averaged_perceptron_tagger_eng and wordnet). Singulars come from CLiPS Pattern. Its releases are no longer on
PyPI, where the package `pattern` is something else; PatternLite has the same inflection rules.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import cache, lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

from regaze.errors import InputError

#: NLTK's data packages, and where they lie in its folders.
_NLTK_DATA = {
    "punkt_tab": "tokenizers",
    "averaged_perceptron_tagger_eng": "taggers",
    "wordnet": "corpora",
}


def tokens(text: str) -> list[str]:
    """NLTK's word tokens. Raises InputError if NLTK or its data is not installed."""
    words: list[str] = _with_nltk(lambda nltk: nltk.word_tokenize(text))
    return words


def sentences(text: str) -> list[str]:
    """NLTK's sentences. Raises InputError as `tokens`."""
    found: list[str] = _with_nltk(lambda nltk: nltk.sent_tokenize(text))
    return found


def tagged(words: list[str]) -> list[tuple[str, str]]:
    """(word, Penn Treebank tag) by NLTK's perceptron tagger. Raises InputError as `tokens`."""
    pairs: list[tuple[str, str]] = _with_nltk(lambda nltk: nltk.pos_tag(words))
    return pairs


@lru_cache(maxsize=1 << 16)
def lemma(word: str, part: str = "n") -> str:
    """WordNet's lemma of `word` as a noun (n), verb (v), adjective (a) or adverb (r). Raises as `tokens`."""
    found: str = _with_nltk(lambda nltk: _wordnet().shortest_lemma(word, part))
    return found


@cache
def _wordnet() -> Any:
    """WordNet, which is read at the first lemma.

    NLTK's own reader also maps it onto itself, for the words of other languages: over half of its time.
    """
    from nltk.corpus import extended_omw
    from nltk.corpus.reader import WordNetCorpusReader
    from nltk.corpus.util import LazyCorpusLoader

    class WordNet(WordNetCorpusReader):
        def map_wn(self, version: str = "wordnet") -> None:
            """No map."""

        def shortest_lemma(self, word: str, part: str) -> str:
            """As NLTK's WordNetLemmatizer chooses among several."""
            return min(self._morphy(word, part), key=len, default=word)

    return LazyCorpusLoader("wordnet", WordNet, extended_omw)


def lemmas_by_tag(words: list[str]) -> list[str]:
    """Each word's lemma for its tagged part of speech, as a noun if it is none of the four."""
    parts = {"J": "a", "V": "v", "N": "n", "R": "r"}
    return [lemma(word, parts.get(tag[0], "n")) for word, tag in tagged(words)]


@lru_cache(maxsize=1 << 16)
def singular(word: str) -> str:
    """CLiPS Pattern's singular of any word, taken as a noun. Raises InputError without PatternLite."""
    found: str = _pattern_inflect().singularize(word)
    return found


@cache
def _pattern_inflect() -> ModuleType:
    """Pattern's module of inflection rules, loaded alone: importing `pattern.en` would download corpora."""
    package = importlib.util.find_spec("pattern")
    path = Path(package.origin).parent / "text" / "en" / "inflect.py" if package and package.origin else None
    if path is None or not path.is_file():
        raise InputError("singular words need CLiPS Pattern's rules: pip install PatternLite (not pattern)")
    spec = importlib.util.spec_from_file_location("regaze_pattern_inflect", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def missing_data() -> list[str]:
    """The data packages that NLTK finds nowhere, NLTK_DATA included, unpacked or as zip files."""
    return [name for name in _NLTK_DATA if data_folder(name) is None]


def data_folder(name: str) -> Path | None:
    """The folder of NLTK's path that has a data package, the first one; None for none."""
    import nltk

    places = (Path(folder) for folder in nltk.data.path)
    kind = _NLTK_DATA[name]
    return next(
        (p for p in places if (p / kind / name).is_dir() or (p / kind / f"{name}.zip").is_file()), None
    )


def require_data() -> None:
    """Raise InputError where NLTK or a data package is missing: it names them, and says how to get them."""
    try:
        import nltk  # noqa: F401
    except ImportError as error:
        raise InputError("captions are split into words by NLTK: pip install 'regaze[eval]'") from error
    if lacking := missing_data():
        raise InputError(
            f"NLTK lacks its data {', '.join(lacking)}: run `python -m nltk.downloader {' '.join(lacking)}`, "
            "or without a network copy an nltk_data folder and set NLTK_DATA to it"
        )


def _with_nltk(use: Callable[[Any], Any]) -> Any:
    try:
        import nltk

        return use(nltk)
    except (ImportError, LookupError):
        require_data()
        raise
