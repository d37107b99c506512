"""What regaze finds in a model, and the roles of a prompt's tokens, for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from regaze.cli import console, models
from regaze.cli.pictures import find_image
from regaze.errors import InputError
from regaze.toolkit import wrap
from regaze.toolkit.inspect import Inspection, Span, inspect_model, read_prompt
from regaze.toolkit.load import load_without_weights
from regaze.toolkit.plot import ROLE_COLOURS
from regaze.toolkit.prompts.token_map import View


def show(
    model: str,
    image: str | None,
    prompt: str | None,
    places: Mapping[str, Any],
    allow_urls: bool = False,
    template: Mapping[str, Any] | None = None,
) -> None:
    """Print a table of the model and, with an image or a prompt, its grid and the roles of its tokens.

    Args:
        places: keyword arguments of `load_without_weights`.
        allow_urls: fetch an image that is given by a URL.
        template: variables of the chat template.

    Raises:
        InputError: no such image, or the model has no processor to build a prompt with.
        ModelNotFoundError: transformers finds no such model.
    """
    models.quiet_libraries()
    skeleton, processor = load_without_weights(model, **places)
    out = console.stdout()
    out.print(_table(inspect_model(skeleton)))
    if image is None and prompt is None:
        return
    if processor is None:
        raise InputError(f"{model} has no processor to build a prompt with; leave out --image and --prompt")
    path = None if image is None else find_image(image, allow_urls)
    question = "What is in the image?" if prompt is None else prompt
    views, spans = read_prompt(wrap(skeleton, processor, template_args=template), path, question)
    for view in views:
        out.print(_view_line(view))
    for text in _coloured(spans) if out.color_system else _lines(spans):
        out.print(text, soft_wrap=True)


def _table(found: Inspection) -> Table:
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    slides, width = found.windows
    heads = f"{found.heads} query, {found.kv_heads} key-value, {found.head_dim} wide"
    cross = f", cross-attention in {ranges(found.cross_layers)}" if found.cross_layers else ""
    rows = {
        "model": f"{found.model_class} ({found.model_type})",
        "family": found.family,
        "layers": f"{found.layers}; self-attention in {ranges(found.attention_layers)}{cross}",
        "heads": heads,
        "windows": f"{width} keys in layers {ranges(slides)}" if slides else "none",
        "attention": found.implementation,
        "image token ids": ", ".join(map(str, found.image_token_ids)) or "none",
        "unsupported": "\n".join(found.unsupported) or "nothing known",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def ranges(numbers: tuple[int, ...]) -> str:
    """(0, 1, 2, 5) as "0-2, 5"."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(f"{p[0]}-{p[-1]}" if len(p) > 1 else f"{p[0]}" for p in parts) or "none"


def _view_line(view: View) -> str:
    """One view of an image: its grid and its part of the image."""
    rows, columns = view.grid
    cells = f"{rows} x {columns} cells" if rows * columns else "tokens without places"
    if view.box is None:
        return f"image {view.image}: {cells}, which part is not known"
    if view.box == (0.0, 0.0, 1.0, 1.0):
        return f"image {view.image}: {cells}, all of it"
    left, top, right, bottom = (f"{share:.0%}" for share in view.box)
    return f"image {view.image}: {cells}, {left} to {right} across and {top} to {bottom} down"


def _lines(spans: list[Span]) -> list[str]:
    """One line per run of tokens of one role, for terminals without colours."""
    return [f"{span.role.name:<10}{span.text!r}" for span in spans]


def _coloured(spans: list[Span]) -> tuple[Text, Text]:
    """The prompt with each token in the colour of its role, and a legend."""
    prompt, legend = Text(), Text()
    for span in spans:
        prompt.append(span.text, style=f"bold {ROLE_COLOURS[span.role]}")
    for role in dict.fromkeys(span.role for span in spans):
        legend.append(f"{role.name} ", style=f"bold {ROLE_COLOURS[role]}")
    return prompt, legend
