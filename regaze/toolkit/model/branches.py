"""Branches, the second contexts of a prompt: without its image, about other pixels, with other words.

Each function makes a `Branch` from the user's prompt; `stack` runs it beside the user's rows.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from regaze.errors import InputError
from regaze.toolkit.model import compat
from regaze.toolkit.model.context import Context
from regaze.toolkit.model.stack import Branch
from regaze.toolkit.prompts.questions import with_question
from regaze.toolkit.prompts.token_map import PromptTokens, Role, TokenMap


def without_image(context: Context) -> Branch:
    """The same prompt without its image tokens: they are masked and take up no position."""
    ids, image = context.prompt_ids(), context.tokens.mask(Role.IMAGE)
    if not image.any():
        raise InputError("a branch without the image was asked for, but no prompt has an image")
    media = dict.fromkeys(compat.media_names(context.inputs))
    ids = ids.masked_fill(image.to(context.device), context.pad_token_id)
    hidden = without_tokens(context, image)
    return Branch({**hidden.inputs, **media, **_token_types(context, ids), "input_ids": ids}, hidden.tokens)


def without_tokens(context: Context, dropped: Tensor) -> Branch:
    """The same prompt without the tokens `dropped` [B, L] bool.

    They are masked, and positions count the other tokens: that is the same as deleting them.
    """
    visible = context.visible & ~dropped
    inputs = {"attention_mask": visible.to(context.device).long()}
    return Branch(inputs, context.tokens.padded_where(dropped & context.visible))


def with_media(context: Context, **media: Tensor) -> Branch:
    """The same prompt about other pixels: media arguments by name, of the shapes of the user's."""
    for name, tensor in media.items():
        given = context.inputs.get(name)
        if not isinstance(given, Tensor) or given.shape != tensor.shape:
            shape = list(given.shape) if isinstance(given, Tensor) else None
            raise InputError(f"the branch's {name} is {list(tensor.shape)}, but the prompt's is {shape}")
    return Branch(media)


def with_prompts(context: Context, prompts: Sequence[Sequence[int]], tokens: TokenMap) -> Branch:
    """Other prompts about the same images.

    Args:
        prompts: token ids of each of the B prompts, unpadded.
        tokens: their roles, padded on the left.

    Raises:
        InputError: an image token is missing or too many; the user's prompts are padded on the right.
    """
    _check_padding(context)
    length = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(prompts), length), context.pad_token_id)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, length - len(prompt) :] = torch.tensor(list(prompt))
        mask[row, length - len(prompt) :] = 1
    images = [int(t.mask(Role.IMAGE).sum()) for t in (context.tokens, tokens)]
    if images[0] != images[1]:
        raise InputError(f"the branch's prompts hold {images[1]} image tokens, the user's {images[0]}")
    ids, mask = ids.to(context.device), mask.to(context.device)
    return Branch({"input_ids": ids, "attention_mask": mask, **_token_types(context, ids)}, tokens)


def prompts_of(context: Context) -> list[tuple[list[int], PromptTokens]]:
    """The user's prompts without their padding: the ids of each and their roles."""
    given, tokens, found = context.prompt_ids().cpu(), context.tokens, []
    for row, visible in enumerate(context.visible[: context.user_batch]):
        roles, view, cell = (
            tuple(part[row][visible].tolist()) for part in (tokens.roles, tokens.view, tokens.cell)
        )
        found.append((given[row][visible].tolist(), PromptTokens(roles, view, cell, tokens.views[row])))
    return found


def rewritten(
    context: Context,
    rewrite: Callable[[int, list[int], PromptTokens], tuple[list[int], PromptTokens]],
) -> Branch:
    """The prompts with other words about the same images.

    Args:
        rewrite: (row, ids, roles) of an unpadded prompt -> other ids and roles.

    Raises:
        InputError: as for `with_prompts`.
    """
    _check_padding(context)
    changed = [rewrite(row, *prompt) for row, prompt in enumerate(prompts_of(context))]
    length = max(len(ids) for ids, _ in changed)
    shown = torch.tensor([[length - len(ids)] for ids, _ in changed]) <= torch.arange(length)
    tokens = TokenMap.from_samples([sample for _, sample in changed], shown)
    return with_prompts(context, [ids for ids, _ in changed], tokens)


def with_questions(context: Context, questions: Sequence[str | None]) -> Branch:
    """The prompts with other questions about the same images; None leaves a prompt as it is.

    Raises:
        InputError: a prompt without a question, or that is padded on the right.
    """

    def rewrite(row: int, ids: list[int], sample: PromptTokens) -> tuple[list[int], PromptTokens]:
        question = questions[row]
        return (ids, sample) if question is None else with_question(ids, sample, question, context.reader)

    return rewritten(context, rewrite)


def _check_padding(context: Context) -> None:
    if not bool(context.visible[:, -1].all()):
        raise InputError(
            "contexts are aligned at their last token: give this method prompts that are padded on the left"
        )


def _token_types(context: Context, ids: Tensor) -> dict[str, Tensor]:
    """The token types of other prompts [B, L'], where the user's have them: a type follows from the id."""
    found: dict[str, Tensor] = {}
    for name in compat.TOKEN_TYPES:
        given = context.inputs.get(name)
        if given is not None:
            found[name] = torch.zeros_like(ids, dtype=given.dtype)
            for kind in given.unique().tolist():
                found[name][torch.isin(ids, context.prompt_ids()[given == kind])] = kind
    return found


def measurement_inputs(context: Context, branch: Branch | None = None) -> dict[str, Any]:
    """The user's prompts, or those of a branch, as arguments of a forward without a cache.

    Positions count the visible tokens of each row, as in a stacked forward, unless the model has a rule of
    its own.
    """
    inputs = {**context.inputs, **({} if branch is None else branch.inputs)}
    inputs = {name: value for name, value in inputs.items() if value is not None}
    masked = None if branch is None else branch.inputs.get("attention_mask")
    # A static cache comes with a mask [B, 1, L, Lk], which does not fit a forward without one.
    mask = context.visible.to(context.device).long() if masked is None else masked
    inputs["attention_mask"] = mask
    positions = compat.pop_positions(inputs)
    counts = compat.counts_positions(context.model, inputs)
    one_axis = not counts and (positions is None or positions.dim() == 2)
    if one_axis and "position_ids" in inspect.signature(context.model.forward).parameters:
        inputs["position_ids"] = (mask.cumsum(1) - 1).clamp_min(0)
    return inputs
