"""Prompts with given answers: one forward over both (teacher forcing), and the answers' log-probabilities."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from regaze.display import brief
from regaze.errors import InputError, ShapeError
from regaze.toolkit.model import compat
from regaze.toolkit.prompts.token_map import Role, TokenMap
from regaze.toolkit.wrap import Gaze


class Inputs(dict[str, Any]):
    """The arguments of a forward together with its token map, for prompts that regaze cannot read itself."""

    def __init__(self, inputs: Mapping[str, Any], tokens: TokenMap):
        super().__init__(inputs)
        self.tokens = tokens

    def __repr__(self) -> str:
        entries = ", ".join(f"{name}: {brief(value)}" for name, value in self.items())
        return f"Inputs({entries}; {self.tokens!r})"


def token_map_of(gaze: Gaze, inputs: Mapping[str, Any]) -> TokenMap:
    """Roles of a forward's tokens."""
    return inputs.tokens if isinstance(inputs, Inputs) else gaze.tokens(inputs)


def with_answers(gaze: Gaze, inputs: Mapping[str, Any], answers: Tensor | Sequence[str]) -> Inputs:
    """Prompts followed by answers, for one forward over both (teacher forcing).

    Args:
        inputs: of B prompts, from `gaze.inputs`.
        answers: B texts, or [B, T] generated ids, each cut at its first end-of-sequence or padding token.

    Returns:
        The arguments of a forward of [B, L + T] tokens; shorter answers are padded on the right.

    Raises:
        InputError: not one answer per prompt, or no answer has a token.
    """
    ids, rows = inputs["input_ids"], _answer_ids(gaze, answers)
    if len(rows) != len(ids):
        raise InputError(f"{len(rows)} answers for {len(ids)} prompts: give one for each")
    longest = max(map(len, rows))
    if not longest:
        raise InputError("the answers are empty: there is no token to look at")
    pad = getattr(gaze.reader.tokenizer, "pad_token_id", None) or 0
    answer = torch.tensor([row + [pad] * (longest - len(row)) for row in rows], device=ids.device)
    real = torch.arange(longest) < torch.tensor([len(row) for row in rows])[:, None]
    tokens = followed_by(token_map_of(gaze, inputs), real)
    return Inputs(append_tokens(inputs, answer, real.to(ids.device)), tokens)


def followed_by(prompt: TokenMap, real: Tensor) -> TokenMap:
    """The roles of prompts with an answer after each; `real` [B, T] is False for its padding."""
    longest, roles = real.shape[1], torch.where(real, int(Role.OUTPUT), int(Role.PAD)).to(torch.uint8)
    return replace(
        prompt,
        roles=torch.cat([prompt.roles, roles], 1),
        view=F.pad(prompt.view, (0, longest), value=-1),
        cell=F.pad(prompt.cell, (0, longest), value=-1),
    )


def append_tokens(inputs: Mapping[str, Any], ids: Tensor, real: Tensor) -> dict[str, Any]:
    """The arguments of a forward with text tokens after the prompt.

    Args:
        inputs: of B prompts. ids: [B, T] the tokens. real: [B, T] bool, False for padding.
    """
    prompt, mask = inputs["input_ids"], inputs.get("attention_mask")
    mask = torch.ones_like(prompt) if mask is None else mask
    longer = {**inputs, "input_ids": torch.cat([prompt, ids], 1)}
    longer["attention_mask"] = torch.cat([mask, real.to(mask)], 1)
    for name in (*compat.TOKEN_TYPES, "image_embeds_position_mask"):  # 0 is text
        if longer.get(name) is not None:
            longer[name] = F.pad(longer[name], (0, ids.shape[1]))
    seen = longer.get("cross_attention_mask")  # [B, L, images, tiles], of Llama 3.2 Vision
    if seen is not None:
        longer["cross_attention_mask"] = torch.cat([seen, *[seen[:, -1:]] * ids.shape[1]], 1)
    return longer


def _answer_ids(gaze: Gaze, answers: Tensor | Sequence[str]) -> list[list[int]]:
    tokenizer = gaze.reader.tokenizer
    if not isinstance(answers, Tensor):
        if isinstance(answers, str) or not all(isinstance(answer, str) for answer in answers):
            raise InputError(f"answers must be [B, T] ids or a list of B texts, got {answers!r}")
        if tokenizer is None:
            raise InputError("give the answers as [B, T] ids: regaze.wrap was given no tokenizer")
        return [tokenizer(answer, add_special_tokens=False)["input_ids"] for answer in answers]
    if answers.dim() != 2:
        raise ShapeError(f"answers must be [B, T] ids, got {list(answers.shape)}")
    ends = gaze.model.generation_config.eos_token_id if gaze.model.generation_config is not None else None
    stop = {*torch.tensor([] if ends is None else ends).flatten().tolist()}
    stop.add(getattr(tokenizer, "pad_token_id", None))
    rows = []
    for row in answers.tolist():
        length = next((i for i, token in enumerate(row) if token in stop), len(row))
        rows.append(row[:length])
    return rows


def answer_log_probs(model: Any, inputs: Any, answer: Tensor) -> Tensor:
    """Log-probability of each token of given answers, in one forward, [B, T] fp32 on the CPU.

    Args:
        model: a transformers model; interventions that are active on it take effect.
        inputs: of B prompts, from `gaze.inputs` (padded on the left).
        answer: [T] or [B, T] ids, as the model generates them. -100 pads shorter answers at the end and has
            log-probability 0.

    Raises:
        ShapeError: answers that do not fit the prompts. InputError: prompts padded on the right.
    """
    ids = inputs["input_ids"]
    answer = torch.as_tensor(answer, device=ids.device)
    answer = answer.expand(len(ids), -1) if answer.dim() == 1 else answer
    if answer.dim() != 2 or len(answer) != len(ids) or not answer.shape[1]:
        raise ShapeError(f"{len(ids)} prompts need answers [{len(ids)}, T], got {list(answer.shape)}")
    mask = inputs.get("attention_mask")
    if mask is not None and not bool(mask[:, -1].all()):
        raise InputError("prompts must be padded on the left, so that all end in the last column")
    real, count = answer >= 0, answer.shape[1]
    options: dict[str, Any] = {"use_cache": False}
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        options["logits_to_keep"] = count + 1
    with torch.inference_mode():
        output = model(**append_tokens(inputs, answer.clamp_min(0), real), **options)
    log_probs = output.logits[:, -count - 1 : -1].float().log_softmax(-1)
    chosen = log_probs.gather(-1, answer.clamp_min(0)[..., None])[..., 0]
    return torch.where(real, chosen, 0.0).cpu()


def greedy_answer(gaze: Gaze, images: Any, question: str, max_new_tokens: int = 32) -> Tensor:
    """The ids [T] of the model's own answer to one question, without special tokens.

    Raises:
        InputError: the answer is empty.
    """
    inputs = gaze.inputs([images], [question])
    tokenizer = gaze.reader.tokenizer
    options = {"do_sample": False, "max_new_tokens": max_new_tokens, "pad_token_id": tokenizer.pad_token_id}
    with torch.inference_mode():
        ids = gaze.model.generate(**inputs, **options)[0, inputs["input_ids"].shape[1] :]
    ids = ids[~torch.isin(ids, torch.tensor(tokenizer.all_special_ids, device=ids.device))].cpu()
    if not len(ids):
        raise InputError(f"the model answers {question!r} with nothing")
    return ids
