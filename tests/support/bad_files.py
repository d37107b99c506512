"""Files as users and attackers make them: damaged, endless, deep, multiplied, of another kind."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Iterator

_GOOD = [
    {"question_id": 1, "image": "a.png", "text": "Is there a dog?", "label": "yes", "answer": "Yes"},
    {"key": "k", "prompt": "p", "verdict": "v", "judge": {}, "condition": "plain", "benchmark": "pope"},
    {"hal_heads": [[0, 1]], "alphas": [[0.5]], "betas": [[1.0]], "0-0": [0.5], "layers": 2, "heads": 2},
    {"format": "regaze retrieval heads", "version": 1, "layers": 1, "heads": 1, "mean": [], "trials": []},
    {"benchmark": "pope", "limit": 3, "set": {"rho": 0.5}, "methods": ["vcd"]},
]
_VALUES = [
    None,
    True,
    -1,
    0,
    10**9,
    10**120,
    1e308,
    float("nan"),
    "",
    "\0",
    "\ud800",
    "\x1b[31m",
    [],
    {},
    [[]],
]
_LAUGHS = b"a%d: &a%d [%s]\n"
_NASTY = [
    b"",
    b"\n\n",
    b"\xef\xbb\xbf",
    b"\xff\xfe{\0}\0",
    b"\xc3\x28",
    b"\0",
    b"[" * 100_000,
    b'{"a":' * 50_000 + b"1",
    b"[" + b"9" * 5_000 + b"]",
    b'{"layers": ' + b"9" * 200 + b"}",
    b'{"text": "\\ud83d"}',
    b'{"image": "a\\u0000.png", "text": "?", "label": "yes"}',
    b'{"a": 1}{"a": 2}',
    b"\x1f\x8b" + b"\0" * 20,
    gzip.compress(b'{"a": 1}')[:-6],
    b"a\tb\n1",
    b'a,b\n"' + b"x" * 200_000 + b'",1\n',
    b'a,b\n"open',
    b"a: &a [*a]\n",
    b"a: 2001-99-99\n",
    b"a: !!python/object:os.system {}\n",
    b"a: !unknown 1\n",
    b"? [1, 2]\n: 3\n? {a: 1}\n: 2\n",
    b"a: 0x" + b"f" * 1_000 + b"\n",
    b"a: " + b"1:" * 2_000 + b"1\n",
    b"<<: 1\n",
    b"a: *nothing\n",
    b"a0: &a0 [x]\n" + b"".join(_LAUGHS % (n, n, b", ".join([b"*a%d" % (n - 1)] * 9)) for n in range(1, 9)),
    "a\u2028b".encode(),
    b"{" * 3_000 + b"}" * 3_000,
]  # fmt: skip


def bad_files(count: int, seed: int = 0) -> Iterator[bytes]:
    """`count` contents of files, the same for a seed: the nasty ones, then mutations of good ones."""
    yield from _NASTY[:count]
    draw = random.Random(seed)
    for _ in range(count - len(_NASTY)):
        yield _mutated(draw)


def _mutated(draw: random.Random) -> bytes:
    record = dict(draw.choice(_GOOD))
    for _ in range(draw.randint(0, 3)):
        record[draw.choice([*record, "extra"])] = draw.choice(_VALUES)
    if draw.random() < 0.2:
        record.pop(draw.choice(list(record)))
    rows = draw.choice([record, [record], [record, record], {"data": [record]}, [[record]]])
    data = bytearray(json.dumps(rows, ensure_ascii=draw.random() < 0.9).encode(errors="surrogatepass"))
    for _ in range(draw.choice([0, 0, 1, 2, 8])):
        place = draw.randrange(len(data))
        change = draw.randrange(4)
        if change == 0:
            data[place] = draw.randrange(256)
        elif change == 1:
            del data[place : place + draw.randint(1, 9)]
        elif change == 2:
            data[place:place] = draw.choice(_NASTY)[:500]
        else:
            data[place:place] = bytes(draw.choices(b'{}[]",:\n\t\\&*!#-', k=3))
        data = data or bytearray(b" ")
    return gzip.compress(bytes(data)) if draw.random() < 0.1 else bytes(data)
