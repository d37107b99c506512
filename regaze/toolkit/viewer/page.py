"""From traces to one HTML file that needs nothing else: no server, no network, no library."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from itertools import chain
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from regaze.errors import BadParameterError, InputError, RecordingError
from regaze.toolkit.plot import ROLE_COLOURS
from regaze.toolkit.prompts.images import ImageLike
from regaze.toolkit.prompts.token_map import Role
from regaze.toolkit.record.record import Record, Trace
from regaze.toolkit.viewer.codec import FLOOR, Packed, Packer, relative_error
from regaze.toolkit.viewer.trace_view import UNKNOWN, Subject

#: Bytes of a page unless the caller says otherwise, and of one that stands in a notebook.
LIMIT, NOTEBOOK_LIMIT = 8_000_000, 3_000_000
#: Files that the page is made of; the scripts run one after the other in one scope.
_STYLE, _SCRIPTS = "viewer.css", ("weights.js", "panels.js", "viewer.js", "keys.js", "building.js")
_HEIGHT = 900


@dataclass(frozen=True)
class Variant:
    """One of the things that a page shows and compares: "plain", or what a method made of it.

    Attributes:
        name: a word for buttons. detail: its parameters. answer: what the model says of its own accord.
    """

    name: str
    detail: str = ""
    answer: str | None = None


@dataclass(frozen=True)
class Page:
    """A page, as a text.

    Attributes:
        html: the whole file. variants: what it shows, with their answers.
    """

    html: str
    variants: tuple[Variant, ...] = ()

    def save(self, path: str | Path) -> Path:
        """Write the file; raises InputError where that cannot be done."""
        path = Path(path)
        try:
            path.write_text(self.html, encoding="utf-8")
        except OSError as error:
            raise InputError(f"cannot write the page to {str(path)!r}: {error.strerror}") from None
        return path

    def _repr_html_(self) -> str:
        """The page in a notebook: a frame of its own, whose scripts cannot reach the notebook."""
        return (
            f'<iframe sandbox="allow-scripts" width="100%" height="{_HEIGHT}" style="border:0" '
            f'srcdoc="{html.escape(self.html)}"></iframe>'
        )


def build(
    groups: Iterable[Sequence[Trace]],
    layers: Sequence[int],
    *,
    variants: Sequence[Variant] = (Variant("plain"),),
    images: Sequence[ImageLike] | None = None,
    sample: int = 0,
    title: str | None = None,
    model: str = "",
    limit: int = LIMIT,
) -> Page:
    """A page of one sample.

    Args:
        groups: traces of the same tokens, one per variant, of some of the layers; all groups together hold
            `layers`, in this order. They are used one at a time: a long prompt need not fit into memory.
        variants: one or two; of two, the second is the edited one.
        images: the pictures as the model receives them, one per image of the prompt.
        sample: row of the batch.
        title: default: the question. model: its name.
        limit: bytes of the page. Where the weights need more, the weakest are left out, and the page says so.

    Raises:
        RecordingError: neither slices nor masses were recorded. BadParameterError: variants of different
            tokens, rows or layers; a limit that is too small. InputError: images that do not fit the prompt.
    """
    groups = iter(groups)
    first = next(groups)
    if first[0].slices is None and first[0].masses is None:
        raise RecordingError('a page needs slices or masses; use gaze.recording(slices="all", rows="text")')
    subject = Subject(first[0], sample)
    described = _describe(subject, variants, layers, images, title, model)
    spare = limit - len(_assemble(described, {}).encode())
    packed = _pack(subject, chain([first], groups), described, spare * 3 // 4 - 1024)
    described["fidelity"] = {
        "bits": packed.bits,
        "indexBytes": packed.index_bytes,
        "floor": FLOOR,
        "relativeError": relative_error(packed.bits),
        "kept": packed.kept,
    }
    return Page(_assemble(described, packed.sections), tuple(variants))


def of_records(record: Record, edited: Record | None = None, trace: int = 0, **options: Any) -> Page:
    """The page of a record's trace, beside that of the same generation under interventions.

    Arguments and errors as for `Record.to_html` and `build`.
    """
    traces = [each[trace] for each in ([record] if edited is None else [record, edited])]
    named = [_variant(each) for each in traces]
    if edited is not None and named[0].name == named[1].name:
        named = [replace(each, name=name) for each, name in zip(named, ("first", "second"), strict=True)]
    options.setdefault("model", Path(record.header.get("model", {}).get("name", "")).name)
    return build([traces], traces[0].layers, variants=named, **options)


def _variant(trace: Trace) -> Variant:
    """What a trace is called, after the interventions under which it was recorded."""
    names, settings = describe(trace.interventions)
    return Variant(names or "plain", settings)


def describe(interventions: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """Names and parameters of interventions in their JSON form, for people."""
    names = " + ".join(entry["method"] for entry in interventions)
    settings = [
        f"{k}={v}" for entry in interventions for k, v in entry.items() if k != "method" and v is not None
    ]
    return names, ", ".join(settings)


def _describe(
    subject: Subject,
    variants: Sequence[Variant],
    layers: Sequence[int],
    images: Sequence[ImageLike] | None,
    title: str | None,
    model: str,
) -> dict[str, Any]:
    """All that the page shows but the weights, as JSON."""
    roles = [role for role in ROLE_COLOURS if role in subject.roles]
    query = "".join(p for p, role in zip(subject.pieces, subject.roles, strict=True) if role == Role.QUERY)
    some = subject.trace.slices if subject.trace.slices is not None else subject.trace.masses
    assert some is not None
    return {
        "title": title or " ".join(query.split())[:200] or "Attention",
        "model": model,
        "variants": [vars(variant) for variant in variants],
        "pieces": subject.pieces,
        "roles": [-1 if role == UNKNOWN else roles.index(Role(role)) for role in subject.roles],
        "roleNames": [role.name.lower() for role in roles],
        "roleNumbers": [int(role) for role in roles],
        "roleColours": [ROLE_COLOURS[role] for role in roles],
        "prompt": subject.prompt,
        "rows": subject.rows,
        "layers": list(layers),
        "heads": some.shape[2],
        "columns": subject.columns,
        "pictures": subject.pictures(images),
        "colours": _colours("inferno"),
    }


def _pack(
    subject: Subject, groups: Iterable[Sequence[Trace]], described: dict[str, Any], budget: int
) -> Packed:
    variants, layers, roles = described["variants"], described["layers"], described["roleNumbers"]
    sizes = len(variants), len(layers), described["heads"], len(subject.rows), len(subject.pieces)
    if budget <= 0:
        raise BadParameterError(
            "the page's limit is smaller than its text and pictures alone; allow a larger one"
        )
    packer, done = Packer(*sizes, budget), []
    for traces in groups:
        _check(subject, traces, len(variants))
        for i, layer in enumerate(traces[0].layers):
            weights = [subject.weights(trace, i) for trace in traces]
            masses = [subject.masses(trace, i, w, roles) for trace, w in zip(traces, weights, strict=True)]
            known = [m for m in masses if m is not None]
            packer.add(np.stack(weights), np.stack(known) if len(known) == len(traces) else None)
            done.append(layer)
    if done != layers:
        raise BadParameterError(f"layers {layers} were announced, but the traces hold {done}")
    return packer.finish()


def _check(subject: Subject, traces: Sequence[Trace], variants: int) -> None:
    if len(traces) != variants:
        raise BadParameterError(f"{len(traces)} traces were given for {variants} variants")
    for trace in traces:
        other = Subject(trace, subject.sample)
        same = (
            other.pieces == subject.pieces and other.rows == subject.rows and other.columns == subject.columns
        )
        if not same or trace.layers != traces[0].layers:
            raise BadParameterError(
                "only records of the same tokens, rows and layers can be compared: let both models say the "
                "same answer (as `regaze.toolkit.viewer.look` does) and record the same rows and layers"
            )


def _colours(name: str) -> str:
    """256 colours of a map, red, green and blue of each in hexadecimal."""
    table = matplotlib.colormaps[name](np.arange(256))[:, :3]
    return (table * 255).round().astype(np.uint8).tobytes().hex()


def _assemble(described: dict[str, Any], sections: dict[str, bytes]) -> str:
    """The file. Texts of the prompt occur in JSON alone, with every "<" escaped, and in the escaped title."""
    style, script = _asset(_STYLE), '"use strict";\n' + "\n".join(map(_asset, _SCRIPTS))
    described = {
        **described,
        "sections": {name: base64.b64encode(data).decode() for name, data in sections.items()},
    }
    allowed = f"style-src '{_hash(style)}'; script-src '{_hash(script)}'"
    parts = {
        "title": html.escape(f"{described['title']} · regaze"),
        "policy": f"default-src 'none'; img-src data:; {allowed}",
        "style": style,
        "data": json.dumps(described, separators=(",", ":")).replace("<", "\\u003c"),
        "script": script,
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], _asset("page.html"))


def _hash(text: str) -> str:
    """What a content security policy knows an inline script or style by."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _asset(name: str) -> str:
    return (resources.files(__package__) / name).read_text(encoding="utf-8")
