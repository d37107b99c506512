"""Prefix sharing: questions about one image over a single prefill of what their prompts have in common.

The prompts of a benchmark that asks six things about a picture agree in nearly all their tokens: the image's,
and the template around it. Their common prefix is run once per image, its key-value cache forked for each
question, and `generate` goes on from there. In a batch the prefixes are padded on the left, and so is what
follows each, which leaves a gap that the attention mask hides; positions count the visible tokens, so that
every token stands where it would without sharing.

That is the same function only where a token depends on the tokens before it and nothing else: causal masks,
one-dimensional positions, a cache that keeps everything, and a method (`Method.shares_prefix`) whose edits
ignore the rest of the prompt, or begin with the prompt's last row. For the latter the plain model reads all
but the last token of each prompt, the gap is taken out of the cache, and the method joins in for the last
one. What can be known beforehand is looked up; the first batch is then run both ways, and where the logits
differ by more than rounding, nothing is shared.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from regaze.toolkit.model import compat, hook

Images = tuple[Path, ...]

#: Options of `generate` that know nothing of the prompt's layout.
_OPTIONS = {
    *("max_new_tokens", "min_new_tokens", "do_sample", "temperature", "top_k", "top_p", "min_p"),
    *("repetition_penalty", "eos_token_id", "pad_token_id", "logits_processor", "stopping_criteria"),
}
_FIRST_LOGITS = {"max_new_tokens": 1, "output_logits": True, "return_dict_in_generate": True}
#: How far logits may lie apart, in standard deviations of the logits, for rounding alone to explain it.
_ROUNDING = {torch.float64: 1e-6, torch.float32: 1e-3}
_ROUGH_ROUNDING = 0.15


def obstacle(gaze: Any, method: Any, options: Mapping[str, Any]) -> str | None:
    """Why prompts cannot share a prefix here, as far as it can be known beforehand; None when they may."""
    model, processor = getattr(gaze, "model", None), getattr(gaze, "processor", None)
    if model is None or processor is None:
        return "this is no wrapped model with a processor"
    if method is not None and not getattr(method, "shares_prefix", ""):
        return f"{method.to_dict().get('method', 'the method')} looks at the whole prompt"
    generation, config = model.generation_config, compat.text_config(model)
    unknown = set(options) - _OPTIONS
    if unknown:
        return f"generate is given {', '.join(sorted(unknown))}"
    if (generation.num_beams or 1) > 1 or generation.cache_implementation:
        return "the model's generation settings ask for beams or a cache of a certain kind"
    if model.config.is_encoder_decoder:
        return "the prompt is read by an encoder"
    if "position_ids" not in inspect.signature(model.forward).parameters:
        return "the model counts positions in its own way"
    if "mrope_section" in (getattr(config, "rope_parameters", None) or {}):
        return "positions have several axes"
    return None


class PrefixSharing:
    """Asks batches of questions over shared prefixes while that is sound.

    Attributes:
        obstacle: why nothing is shared (any more); None while it is.
    """

    def __init__(self, gaze: Any, method: Any, options: Mapping[str, Any]):
        self.gaze = gaze
        #: whether the method joins in for the last token of a prompt
        self._late = getattr(method, "shares_prefix", "") == "plain"
        self.obstacle = obstacle(gaze, method, options)

    def ask(self, images: Sequence[Images], prompts: Sequence[str], options: Mapping[str, Any]) -> list[str]:
        """One answer per prompt, as `gaze.ask` gives them.

        Args:
            images: per prompt its images; prompts about the same ones share a prefix.
            options: of `generate`.
        """
        shared = None if self.obstacle else self._prepare(images, prompts)
        if shared is None:
            answers: list[str] = self.gaze.ask(
                [list(entry) for entry in images], prompts, batch_size=len(prompts), **options
            )
            return answers
        length = max(map(len, shared.whole)) if self._late else shared.length
        generated = self._generate(shared, self._options(options))[:, length:]
        texts = self.gaze.reader.tokenizer.batch_decode(generated, skip_special_tokens=True)
        return [text.strip() for text in texts]

    def check(self, images: Sequence[Images], prompts: Sequence[str]) -> None:
        """Run a batch with and without sharing up to the first new token; what disagrees is not shared again.

        Logits must agree up to rounding. A batch in which nothing can be shared ends sharing, too.
        """
        shared = None if self.obstacle else self._prepare(images, prompts)
        if shared is None:
            self.obstacle = self.obstacle or "no two questions have enough in common"
            return
        model, options = self.gaze.model, self._options(_FIRST_LOGITS)
        try:
            found = self._generate(shared, options).logits[0].float()
        except _CannotFork:
            self.obstacle = "the cache does not keep every token in every layer"
            return
        except Exception as error:  # no reason to stop: the same questions are asked without sharing
            self.obstacle = f"this model cannot go on from a prefix ({type(error).__name__}: {error})"
            return
        with torch.inference_mode():
            inputs = self.gaze.inputs([list(entry) for entry in images], list(prompts))
            expected = model.generate(**inputs, **options).logits[0].float()
        bound = _ROUNDING.get(model.dtype, _ROUGH_ROUNDING) * float(expected[expected.isfinite()].std())
        apart = torch.where(found == expected, 0.0, found - expected)  # a cut token is -inf in both
        if not float(apart.abs().max()) <= bound:  # nan is no agreement either
            self.obstacle = "this model computes something else over a shared prefix"

    # Prompts ------------------------------------------------------------------------------------------

    def _prepare(self, images: Sequence[Images], prompts: Sequence[str]) -> _Shared | None:
        """The batch with its prefixes; None where there is nothing to share, or it cannot be told apart."""
        family = self.gaze.family
        if any(images) and not family.image_token_ids:
            self.obstacle = "it is not known where this model's image tokens are"
            return None
        first: dict[Images, int] = {}
        groups = [first.setdefault(entry, len(first)) for entry in images]
        if len(first) == len(prompts):
            return None
        leaders = [groups.index(group) for group in range(len(first))]
        inputs = self.gaze.inputs([list(images[i]) for i in leaders], [prompts[i] for i in leaders])
        if "token_type_ids" in inputs or "mm_token_type_ids" in inputs:
            self.obstacle = "the mask of this model depends on the type of each token"
            return None
        whole = [row[mask.bool()].tolist() for row, mask in zip(*_text(inputs), strict=True)]
        short = [self._short(prompt, len(entry)) for prompt, entry in zip(prompts, images, strict=True)]
        ids = [
            _expanded(whole[group], short[leaders[group]], own, frozenset(family.image_token_ids))
            for group, own in zip(groups, short, strict=True)
        ]
        if any(row is None for row in ids):
            return None
        ends = [_last(family.image_mask(row)) for row in whole]
        media = {name: value for name, value in inputs.items() if name not in ("input_ids", "attention_mask")}
        one_each = all(len(images[i]) == 1 for i in leaders)
        return _Shared.of([row for row in ids if row is not None], groups, ends, media, one_each)

    def _short(self, prompt: str, images: int) -> list[int]:
        """Tokens of a prompt in which an image is one placeholder."""
        reader = self.gaze.reader
        text = reader.render(prompt, images).text
        return reader.tokenizer(text, add_special_tokens=reader.adds_special_tokens(text))["input_ids"]

    # Generating ---------------------------------------------------------------------------------------

    def _generate(self, shared: _Shared, options: Mapping[str, Any]) -> Any:
        with torch.inference_mode():
            if self._late:
                return self._generate_late(shared, options)
            cache, prefix, visible = self._forked(shared)
            rest, seen = self._rows(shared.rests)
            return self.gaze.model.generate(
                input_ids=torch.cat([prefix, rest], 1),
                attention_mask=torch.cat([visible, seen], 1),
                **compat.with_cache(options, cache),
            )

    def _generate_late(self, shared: _Shared, options: Mapping[str, Any]) -> Any:
        """The prompts without their last tokens by the plain model, the rest under the method."""
        model, (ids, mask) = self.gaze.model, self._rows(shared.whole)
        with hook.suspended(model):
            cache, _, visible = self._forked(shared)
            rest, seen = self._rows([row[:-1] for row in shared.rests])
            if rest.shape[1]:
                visible = torch.cat([visible, seen], 1)
                positions = (visible.cumsum(1) - 1).clamp_min(0)[:, -rest.shape[1] :]
                model(
                    input_ids=rest,
                    attention_mask=visible,
                    position_ids=positions,
                    logits_to_keep=1,
                    **compat.with_cache({}, cache),
                )
        _without_gap(cache, visible.bool(), ids.shape[1] - 1)
        hook.adopt_cache(model, cache, {"input_ids": ids, "attention_mask": mask, **shared.media_of_rows()})
        return model.generate(input_ids=ids, attention_mask=mask, **compat.with_cache(options, cache))

    def _forked(self, shared: _Shared) -> tuple[Any, Tensor, Tensor]:
        """A cache with the prefix of every prompt, and ids and mask of these [B, longest prefix]."""
        prefix, visible = self._rows(shared.prefixes)
        cache = compat.cache_of(
            self.gaze.model(
                input_ids=prefix,
                attention_mask=visible,
                position_ids=(visible.cumsum(1) - 1).clamp_min(0),
                use_cache=True,
                logits_to_keep=1,
                **shared.media,
            )
        )
        if cache is None or not compat.is_forkable(cache):
            raise _CannotFork
        groups = torch.tensor(shared.groups)  # on the CPU: layers may lie on several devices
        cache.batch_select_indices(groups)
        return cache, prefix[groups], visible[groups]

    def _rows(self, rows: list[list[int]]) -> tuple[Tensor, Tensor]:
        """Ids and mask [rows, longest] on the model's device, padded on the left."""
        ids, mask = _padded(rows, self.gaze.reader.tokenizer.pad_token_id)
        return ids.to(self.gaze.model.device), mask.to(self.gaze.model.device)

    def _options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """`given` with what `gaze.ask` takes where nothing is given."""
        pad = self.gaze.reader.tokenizer.pad_token_id
        return {"max_new_tokens": 128, "do_sample": False, "pad_token_id": pad, **given}


class _CannotFork(Exception):
    """The prefix was run, but its cache is not one that can be continued several times."""


@dataclass(frozen=True)
class _Shared:
    """Prompts [B] as a prefix per group [G] and what follows it."""

    prefixes: list[list[int]]
    rests: list[list[int]]
    groups: list[int]
    media: Mapping[str, Tensor]
    one_image_each: bool

    @property
    def length(self) -> int:
        """Columns of the padded batch."""
        return max(map(len, self.prefixes)) + max(map(len, self.rests))

    @classmethod
    def of(
        cls,
        ids: list[list[int]],
        groups: list[int],
        image_ends: list[int],
        media: Mapping[str, Tensor],
        one_image_each: bool,
    ) -> _Shared | None:
        """Cut every prompt behind what its group has in common; at least one token stays behind it.

        Args:
            image_ends: per group where the last image token ends: the cut may not lie before it.
            one_image_each: whether each group is about exactly one image.

        Returns:
            None where that saves nothing.
        """
        members = [
            [row for row, own in zip(ids, groups, strict=True) if own == g] for g in range(len(image_ends))
        ]
        cuts = [_common(rows) for rows in members]
        # A prompt that is alone in its group could be cut anywhere: where its rest is no longer than others'.
        lengths = [
            len(row) - cuts[own] for row, own in zip(ids, groups, strict=True) if len(members[own]) > 1
        ]
        longest = max(lengths)
        for group, rows in enumerate(members):
            if len(rows) == 1:
                cuts[group] = min(cuts[group], max(1, image_ends[group], len(rows[0]) - longest))
        if min(cuts) < 1 or any(cut < end for cut, end in zip(cuts, image_ends, strict=True)):
            return None
        prefixes = [rows[0][:cut] for cut, rows in zip(cuts, members, strict=True)]
        rests = [row[cuts[own] :] for row, own in zip(ids, groups, strict=True)]
        shared = cls(prefixes, rests, groups, media, one_image_each)
        return shared if shared.tokens < len(ids) * max(map(len, ids)) else None

    @property
    def whole(self) -> list[list[int]]:
        """The prompts."""
        return [self.prefixes[own] + rest for own, rest in zip(self.groups, self.rests, strict=True)]

    def media_of_rows(self) -> dict[str, Tensor]:
        """The images once per prompt, for those who look at the prompts; none where that is not known."""
        if not self.one_image_each or any(len(each) != len(self.prefixes) for each in self.media.values()):
            return {}
        return {name: value[self.groups] for name, value in self.media.items()}

    @property
    def tokens(self) -> int:
        """Positions that are run before the first new token, padding included."""
        return len(self.prefixes) * max(map(len, self.prefixes)) + len(self.rests) * max(map(len, self.rests))


def _expanded(
    whole: list[int], leader: list[int], own: list[int], image_token_ids: frozenset[int]
) -> list[int] | None:
    """Ids of a prompt, from those of another about the same images whose expansion is known.

    Args:
        whole: the leader's ids with its image tokens. leader, own: both with a placeholder per image.

    Returns:
        None where the prompts part before the last image, or expansion changed what follows it.
    """
    agree = _common_length(leader, own)
    rest = len(leader) - agree
    if (
        agree < _last([token in image_token_ids for token in leader])
        or not image_token_ids.isdisjoint(own[agree:])
        or whole[len(whole) - rest :] != leader[agree:]
    ):
        return None
    return whole[: len(whole) - rest] + own[agree:]


def _last(image: list[bool]) -> int:
    """Where the last image token ends; 0 without one."""
    return 1 + max((i for i, shown in enumerate(image) if shown), default=-1)


def _common(rows: list[list[int]]) -> int:
    """Length of the longest common prefix that leaves every row a token."""
    shortest, longest = min(rows), max(rows)  # in lexical order: what these share, all share
    return min(_common_length(shortest, longest), min(map(len, rows)) - 1)


def _common_length(a: list[int], b: list[int]) -> int:
    length = min(len(a), len(b))
    return next((i for i in range(length) if a[i] != b[i]), length)


def _without_gap(cache: Any, visible: Tensor, length: int) -> None:
    """Move the visible columns [B, L] of a cache to its end, and keep the last `length` columns."""
    order = visible.int().sort(dim=1, stable=True).indices
    compat.keep_columns(cache, order[:, visible.shape[1] - length :])


def _padded(rows: list[list[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Ids and mask [rows, longest], padded on the left."""
    length = max(map(len, rows))
    ids = torch.tensor([[pad] * (length - len(row)) + row for row in rows], dtype=torch.int64)
    mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows], dtype=torch.int64)
    return ids, mask


def _text(inputs: Any) -> tuple[Tensor, Tensor]:
    return inputs["input_ids"].cpu(), inputs["attention_mask"].cpu()
