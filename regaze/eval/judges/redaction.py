"""Keep secrets out of what servers send back: as they are, in parts, escaped or encoded."""

from __future__ import annotations

import base64
import binascii
import html
import re
import string
import unicodedata
from collections.abc import Collection, Iterator
from urllib.parse import unquote_plus

HIDDEN = "***"
#: A shorter key is a placeholder for a server that needs none, such as EMPTY; a text may well hold it.
LEAST = 6
#: Letters and digits in a row that two texts have in common by chance only where a key is made of words.
_PART = 8
#: Characters; longer texts are cut before they are looked at.
MAX_TEXT = 2**16
_ENCODED = re.compile(r"[A-Za-z0-9+/_-]{8,}")
_HEXADECIMAL = re.compile(r"(?:[0-9a-fA-F]{2}[\s:]?){6,}")
_ESCAPE = re.compile(r"(?:\\+(?:u00|x)|\b0x|=)([0-9a-fA-F]{2})|\\+([0-7]{2,3})")
_BASE32 = re.compile(r"[A-Z2-7]{10,}")
#: The codes of characters, one after the other.
_CODES = re.compile(r"(?:\b[0-9]{2,8}\b[^0-9a-zA-Z]{0,3}){6,}")
_TURNED = str.maketrans(
    string.ascii_letters,
    "".join(letters[13:] + letters[:13] for letters in (string.ascii_lowercase, string.ascii_uppercase)),
)


def redact(text: str, secrets: Collection[str]) -> str:
    """`text`, cut to `MAX_TEXT`, with `HIDDEN` in the place of secrets.

    Where it spells a secret otherwise, nothing of it stays.
    """
    text = text[:MAX_TEXT]
    kept = [secret for secret in secrets if len(secret) >= LEAST]
    for secret in sorted(kept, key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    return HIDDEN if any(_spells(view, secret) for view in _views(text) for secret in kept) else text


def _spells(text: str, secret: str) -> bool:
    """Whether a text holds a secret, or a good part of one, whatever stands between its characters."""
    letters, wanted = _letters(text), _letters(secret)
    if len(wanted) < 12 and not re.search(r"\d", wanted):  # words, which a text may hold, too
        return secret.casefold() in text.casefold()
    part = min(_PART, len(wanted))
    return any(wanted[at : at + part] in letters for at in range(len(wanted) - part + 1))


def _letters(text: str) -> str:
    return "".join(filter(str.isalnum, unicodedata.normalize("NFKC", text).casefold()))


def _views(text: str) -> Iterator[str]:
    """The text, and what it is when it is decoded once or twice, by any of the usual ways."""
    seen, views = {text}, [text]
    for _ in range(2):
        views = [each for view in views for each in _decoded(view) if each not in seen]
        seen.update(views)
    yield from seen


def _decoded(text: str) -> Iterator[str]:
    yield text[::-1]
    yield text.translate(_TURNED)
    yield unquote_plus(text)
    yield html.unescape(text)
    yield _ESCAPE.sub(lambda found: chr(int(found[1], 16) if found[1] else int(found[2], 8)), text)
    joined = re.sub(r"\s+", "", text)
    for source in {text, joined}:
        for found in _ENCODED.finditer(source):
            for start in range(4):
                yield _from_base64(found[0][start:])
    for found in _BASE32.finditer(joined):
        yield base64.b32decode(found[0][: len(found[0]) // 8 * 8]).decode("latin-1")
    for found in _CODES.finditer(text):
        codes = re.findall("[0-9]+", found[0])
        base = 2 if set(found[0]) <= set("01 ,;") else 10
        yield "".join(chr(int(code, base) % 256) for code in codes)
    for found in _HEXADECIMAL.finditer(text):
        yield bytes.fromhex(re.sub(r"[\s:]", "", found[0])).decode("latin-1")


def _from_base64(text: str) -> str:
    text = text.translate(str.maketrans("-_", "+/"))
    text = text[: len(text) // 4 * 4] if len(text) % 4 == 1 else text + "=" * (-len(text) % 4)
    try:
        return base64.b64decode(text).decode("latin-1")
    except binascii.Error:
        return ""
