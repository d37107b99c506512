"""`build_page` and `record_page`: from traces to one HTML file that needs no server, network or library."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from regaze.errors import BadParameterError, RecordingError
from regaze.reading import StrPath
from regaze.toolkit.plot import ROLE_COLOURS
from regaze.toolkit.prompts.images import ImageLike
from regaze.toolkit.prompts.token_map import Role
from regaze.toolkit.record.record import Record
from regaze.toolkit.record.trace import Trace
from regaze.toolkit.viewer.codec import FLOOR, EncodedWeights, WeightEncoder, relative_error
from regaze.toolkit.viewer.template import render
from regaze.toolkit.viewer.trace_view import UNKNOWN, TraceView
from regaze.writing import replace_file

#: Largest size of a page in bytes, by default.
PAGE_BYTES = 8_000_000
#: Height of the frame in a notebook, in pixels.
_FRAME_HEIGHT = 900


@dataclass(frozen=True)
class Variant:
    """One of the models that a page shows and compares: the plain one, or one under interventions.

    Attributes:
        name: the label of its button. detail: its parameters. answer: its own answer, not a forced one.
    """

    name: str
    detail: str = ""
    answer: str | None = None


@dataclass(frozen=True, repr=False)
class Page:
    """An HTML page.

    Attributes:
        html: the whole file. variants: what it shows, with their answers.
    """

    html: str
    variants: tuple[Variant, ...] = ()

    def __repr__(self) -> str:
        names = ", ".join(variant.name for variant in self.variants)
        return f"Page({names}: {len(self.html):,} characters; save(path) writes them)"

    def save(self, path: StrPath) -> Path:
        """Write the file in one step; raises InputError where that cannot be done."""
        replace_file(path, self.html)
        return Path(path)

    def _repr_html_(self) -> str:
        """The page in a notebook: in a frame of its own, whose scripts cannot reach the notebook."""
        return (
            f'<iframe sandbox="allow-scripts" width="100%" height="{_FRAME_HEIGHT}" style="border:0" '
            f'srcdoc="{html.escape(self.html)}"></iframe>'
        )


def record_page(
    record: Record,
    edited: Record | None = None,
    *,
    images: Sequence[ImageLike] | None = None,
    trace: int = 0,
    sample: int = 0,
    title: str | None = None,
    limit: int = PAGE_BYTES,
) -> Page:
    """The page of one sample of a record; save it, or let a notebook show it.

    Args:
        record: with slices or masses.
        edited: a record of the same tokens, rows and layers under interventions, to compare with
            (`answer_page` makes both).
        images: the pictures that were asked about, in any size, or as the model receives them
            (`gaze.seen(image)`), one per image of the sample; without them the maps have no picture.
        trace: number of the generation. sample: row of its batch.
        title: default: the question.
        limit: largest size in bytes; docs/guide/viewer.md says what is left out of larger pages.

    Raises:
        RecordingError, BadParameterError, InputError: as `build_page`.
    """
    traces = [each[trace] for each in ([record] if edited is None else [record, edited])]
    variants = [Variant(*label(each.interventions)) for each in traces]
    if edited is not None and variants[0].name == variants[1].name:
        variants = [replace(v, name=name) for v, name in zip(variants, ("first", "second"), strict=True)]
    return build_page(
        [traces],
        traces[0].layers,
        variants=variants,
        images=images,
        sample=sample,
        title=title,
        model=Path(record.header.get("model", {}).get("name", "")).name,
        limit=limit,
    )


def build_page(
    groups: Iterable[Sequence[Trace]],
    layers: Sequence[int],
    *,
    variants: Sequence[Variant] = (Variant("plain"),),
    images: Sequence[ImageLike] | None = None,
    sample: int = 0,
    title: str | None = None,
    model: str = "",
    limit: int = PAGE_BYTES,
) -> Page:
    """A page of one sample.

    Args:
        groups: traces of the same tokens, one per variant, of some of the layers; all groups together hold
            `layers`, in this order. They are used one at a time: a long prompt need not fit into memory.
        variants: one or two; of two, the second is the edited one.
        images: the pictures that were asked about, or as the model receives them, one per image.
        sample: row of the batch.
        title: default: the question. model: its name.
        limit: largest size in bytes. Where the weights need more, the weakest are left out, and the page says
            so.

    Raises:
        RecordingError: neither slices nor masses were recorded. BadParameterError: variants of different
            tokens, rows or layers; a limit that is too small. InputError: images that do not fit the prompt.
    """
    groups = iter(groups)
    first = next(groups)
    if first[0].slices is None and first[0].masses is None:
        raise RecordingError('a page needs slices or masses; use gaze.recording(slices="all", rows="text")')
    view = TraceView(first[0], sample)
    content = {
        "title": title or _question(view) or "Attention",
        "model": model,
        "variants": [vars(variant) for variant in variants],
        **_tokens(view),
        "layers": list(layers),
        "heads": view.heads,
        "columns": view.columns,
        "pictures": view.pictures(images),
        "colours": _colours("inferno"),
    }
    # base64 needs a third more than the bytes; the section names and the fidelity need a little.
    budget = (limit - len(render(content).encode())) * 3 // 4 - 1024
    if budget <= 0:
        raise BadParameterError(
            "the page's limit is smaller than its text and pictures alone; allow a larger one"
        )
    encoded = _encode(view, chain([first], groups), content["layers"], len(variants), budget)
    content["fidelity"] = {
        "bits": encoded.bits,
        "indexBytes": encoded.index_bytes,
        "floor": FLOOR,
        "relativeError": relative_error(encoded.bits),
        "entriesPerRow": encoded.entries_per_row,
    }
    content["sections"] = {name: base64.b64encode(data).decode() for name, data in encoded.sections.items()}
    return Page(render(content), tuple(variants))


def label(interventions: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """The name of a variant, and its parameters, from the JSON form of its interventions."""
    names = " + ".join(entry["method"] for entry in interventions)
    parameters = [
        f"{name}={value}"
        for entry in interventions
        for name, value in entry.items()
        if name != "method" and value is not None
    ]
    return names or "plain", ", ".join(parameters)


def _question(view: TraceView) -> str:
    """The question's text, shortened."""
    pieces = (piece for piece, role in zip(view.pieces, view.roles, strict=True) if role == Role.QUERY)
    return " ".join("".join(pieces).split())[:200]


def _tokens(view: TraceView) -> dict[str, Any]:
    """The tokens, their roles, and the rows that were recorded."""
    roles = _roles(view)
    return {
        "pieces": view.pieces,
        "roles": [-1 if role == UNKNOWN else roles.index(Role(role)) for role in view.roles],
        "roleNames": [role.name.lower() for role in roles],
        "roleNumbers": [int(role) for role in roles],
        "roleColours": [ROLE_COLOURS[role] for role in roles],
        "prompt": view.prompt,
        "rows": view.rows,
        "opening": view.opening_token(),
    }


def _roles(view: TraceView) -> list[Role]:
    """The roles that occur, in the order of their colours."""
    return [role for role in ROLE_COLOURS if role in view.roles]


def _encode(
    view: TraceView, groups: Iterable[Sequence[Trace]], layers: list[int], variants: int, budget: int
) -> EncodedWeights:
    """The weights of all variants and layers, in at most `budget` bytes."""
    sizes = variants, len(layers), view.heads, len(view.rows), len(view.pieces)
    encoder, done = WeightEncoder(*sizes, budget), []
    roles = _roles(view)
    for traces in groups:
        _check_group(view, traces, variants)
        for i, layer in enumerate(traces[0].layers):
            weights = [view.weights(trace, i) for trace in traces]
            masses = [view.masses(trace, i, w, roles) for trace, w in zip(traces, weights, strict=True)]
            known = [mass for mass in masses if mass is not None]
            encoder.add(np.stack(weights), np.stack(known) if len(known) == len(traces) else None)
            done.append(layer)
    if done != layers:
        raise BadParameterError(f"layers {layers} were announced, but the traces hold {done}")
    return encoder.finish()


def _check_group(view: TraceView, traces: Sequence[Trace], variants: int) -> None:
    if len(traces) != variants:
        raise BadParameterError(f"{len(traces)} traces were given for {variants} variants")
    for trace in traces:
        other = TraceView(trace, view.sample)
        same = other.pieces == view.pieces and other.rows == view.rows and other.columns == view.columns
        if not same or trace.layers != traces[0].layers:
            raise BadParameterError(
                "only records of the same tokens, rows and layers can be compared: force both models to "
                "the same answer (as `regaze.toolkit.viewer.answer_page` does) and record the same rows "
                "and layers"
            )


def _colours(name: str) -> str:
    """256 colours of a colour map; red, green and blue of each in hexadecimal."""
    table = matplotlib.colormaps[name](np.arange(256))[:, :3]
    return (table * 255).round().astype(np.uint8).tobytes().hex()
