"""Files as users and attackers make them: damaged, endless, deep, multiplied, of another kind."""

from __future__ import annotations

import gzip
import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from damaged_records import with_junk

_GOOD = [
    {"question_id": 1, "image": "a.png", "text": "Is there a dog?", "label": "yes", "answer": "Yes"},
    {"key": "k", "prompt": "p", "verdict": "v", "judge": {}, "condition": "plain", "benchmark": "pope"},
    {"hal_heads": [[0, 1]], "alphas": [[0.5]], "betas": [[1.0]], "0-0": [0.5], "layers": 2, "heads": 2},
    {"format": "regaze retrieval heads", "version": 1, "layers": 1, "heads": 1, "mean": [], "trials": []},
    {"benchmark": "pope", "limit": 3, "set": {"rho": 0.5}, "methods": ["vcd"]},
    {"text": "A needle.", "question": "What?", "answer": "A needle.", "cue": "needle"},
]
_LAUGHS = b"a%d: &a%d [%s]\n"
NASTY = [
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
    b'{"answer": "yes", "answer": "no", "label": "yes"}',
    b'{"answer": {"0": "yes"}, "label": {"1": "yes"}, "x": {}}',
    b"\x1f\x8b" + b"\0" * 20,
    gzip.compress(b'{"a": 1}')[:-6],
    gzip.compress(b"") * 1_000,
    b"a\tb\n1",
    b'a,b\n"' + b"x" * 200_000 + b'",1\n',
    b'a,b\n"open',
    b"a\t" * 2_000,
    b"answer\tanswer\nyes\tno\n",
    b"a: &a [*a]\n",
    b"a: 2001-99-99\n",
    b"benchmark: 2001-01-01\nlimit: 2001-01-01 00:00:00\n",
    b"limit: .nan\nseed: .inf\nset: {rho: .inf}\n",
    b"benchmark: !!binary aGFsbG8=\nset: !!set {a, b}\n",
    b"methods: !!omap [a: 1]\nbench: !!pairs [a: 1, a: 2]\n",
    b"a: !!python/object:os.system {}\n",
    b"a: !unknown 1\n",
    b"? [1, 2]\n: 3\n? {a: 1}\n: 2\n",
    b"a: 0x" + b"f" * 1_000 + b"\n",
    b"a: " + b"1:" * 2_000 + b"1\n",
    b"<<: 1\n",
    b"a: *nothing\n",
    b"limit: 1\nlimit: 2\n",
    b"a0: &a0 [x]\n" + b"".join(_LAUGHS % (n, n, b", ".join([b"*a%d" % (n - 1)] * 9)) for n in range(1, 9)),
    "a\u2028b".encode(),
    b"{" * 3_000 + b"}" * 3_000,
    b"[" + b" " * 500_000 + b"]",
    "[{\"answer\": \"\x7f\x9b31m\u202eyes\u2066\u200b\", \"label\": \"yes\"}]".encode(),
    b"\x89PNG\r\n\x1a\n" + b"\0" * 50,
    b"GIF89a\xff\xff\xff\xff\xf7\0\0",
]  # fmt: skip


def bad_files(count: int, seed: int = 0) -> Iterator[bytes]:
    """`count` contents of files, the same for a seed: the nasty ones, then mutations of good ones."""
    yield from NASTY[:count]
    draw = random.Random(seed)
    for _ in range(count - len(NASTY)):
        record = dict(draw.choice(_GOOD))
        rows = draw.choice([record, [record], [record, record], {"data": [record]}, [[record]]])
        yield damaged(json.dumps(rows).encode(), draw)


def damaged(data: bytes, draw: random.Random) -> bytes:
    """A content with one kind of damage."""
    kind = draw.random()
    if kind < 0.1:
        return draw.choice(NASTY)
    if kind < 0.6 and (changed := _with_junk(data, draw)) is not None:
        data = changed
    if kind > 0.4:
        data = _mutated(bytearray(data or b" "), draw)
    return gzip.compress(data) if draw.random() < 0.1 else data


def _with_junk(data: bytes, draw: random.Random) -> bytes | None:
    """JSON, or one of its lines, with some values changed or removed; None for another content."""
    rows = data.split(b"\n")
    try:
        values = [json.loads(data)]
    except ValueError:
        try:
            values = [json.loads(row) for row in rows]
        except ValueError:
            return None
    place = draw.randrange(len(values))
    values[place] = with_junk([values[place]], draw) or [{}]
    values[place] = values[place][0]
    ascii_only = draw.random() < 0.1
    return b"\n".join(json.dumps(v, ensure_ascii=ascii_only).encode(errors="surrogatepass") for v in values)


def _mutated(data: bytearray, draw: random.Random) -> bytes:
    for _ in range(draw.choice([1, 1, 2, 8])):
        place = draw.randrange(len(data))
        change = draw.randrange(5)
        if change == 0:
            data[place] = draw.randrange(256)
        elif change == 1:
            del data[place : place + draw.randint(1, 9)]
        elif change == 2:
            data[place:place] = draw.choice(NASTY)[:500]
        elif change == 3:
            data[place:place] = data[: draw.randint(1, 400)]
        else:
            data[place:place] = bytes(draw.choices(b'{}[]",:\n\t\\&*!#-', k=3))
        data = data or bytearray(b" ")
    return bytes(data)


def put_something_else(path: Path, draw: random.Random) -> None:
    """Nothing, or something other than a regular file, in the place of a file."""
    path.unlink(missing_ok=True)
    makers: list[Any] = [
        lambda: None,
        path.mkdir,
        lambda: os.mkfifo(path),
        lambda: path.symlink_to("/dev/zero"),
        lambda: path.symlink_to(path.name),
        lambda: path.symlink_to("/proc/self/mem"),
    ]
    draw.choice(makers)()
