"""Prefix sharing: the prompts of several questions about one image share a single prefill.

Prompts that ask six questions about one picture agree in nearly all tokens: those of the image, and of the
template around it. Their common prefix is run once per image, its key-value cache is forked for each
question, and `generate` continues from there. In a batch the prefixes are padded on the left, and so are the
remainders, which leaves a gap that the attention mask hides. Positions count the visible tokens, so every
token has the position that it has without sharing.

The result is the same only if a token depends on nothing but the tokens before it. That needs causal masks,
one-dimensional positions, a cache that keeps every token, and a method (`Method.shares_prefix`) whose edits
ignore the rest of the prompt or begin with the prompt's last row. In the latter case the plain model reads
all but the last token of each prompt, the gap is removed from the cache, and the method is active from the
last token on. What can be known in advance is looked up. Then the first batch is run both ways, and if the
logits differ by more than rounding, nothing is shared.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from regaze.eval.run.split_prompts import SplitPrompts, expand_images, image_end
from regaze.toolkit.model import compat, hook
from regaze.toolkit.prompts.conversation import Conversation
from regaze.toolkit.prompts.video import Video

Images = tuple[Path | Video, ...]

#: options of `generate` that do not depend on the prompt's layout
_OPTIONS = {
    *("max_new_tokens", "min_new_tokens", "do_sample", "temperature", "top_k", "top_p", "min_p"),
    *("repetition_penalty", "eos_token_id", "pad_token_id", "logits_processor", "stopping_criteria"),
}
_FIRST_LOGITS = {"max_new_tokens": 1, "output_logits": True, "return_dict_in_generate": True}
#: largest difference that rounding explains, in standard deviations of the logits
_ROUNDING = {torch.float64: 1e-6, torch.float32: 1e-3}
_ROUNDING_16_BIT = 0.15


def obstacle(gaze: Any, method: Any, options: Mapping[str, Any]) -> str | None:
    """Why prompts cannot share a prefix, as far as it can be known in advance; None when they may."""
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
    """Generates the answers to batches of prompts over shared prefixes, as long as that is sound.

    Attributes:
        obstacle: why nothing is shared; None while prefixes are shared.
        prefix_rows: rows of the forwards so far that only filled caches with parts of prompts.
    """

    def __init__(self, gaze: Any, method: Any, options: Mapping[str, Any]):
        self.gaze = gaze
        #: whether the method is active only from the last token of a prompt on
        self._starts_at_last_token = getattr(method, "shares_prefix", "") == "plain"
        self.obstacle = obstacle(gaze, method, options)
        self.prefix_rows = 0

    def answer(
        self, images: Sequence[Images], prompts: Sequence[str | Conversation], options: Mapping[str, Any]
    ) -> list[str]:
        """One answer per prompt, the same as `gaze.ask` returns.

        Args:
            images: the images of each prompt; prompts about the same images share a prefix.
            options: of `generate`.
        """
        split = None if self.obstacle else self._split(images, prompts)
        if split is None:
            answers: list[str] = self.gaze.ask(
                [list(entry) for entry in images], prompts, batch_size=len(prompts), **options
            )
            return answers
        length = max(map(len, split.prompts)) if self._starts_at_last_token else split.length
        generated = self._generate(split, self._with_defaults(options))[:, length:]
        return [text.strip() for text in self.gaze.reader.decode(generated)]

    def check(self, images: Sequence[Images], prompts: Sequence[str | Conversation]) -> None:
        """Compare the logits of the first new token with and without sharing, and set `obstacle`.

        Sharing ends if the logits differ by more than rounding, or if nothing in the batch can be shared.
        """
        split = None if self.obstacle else self._split(images, prompts)
        if split is None:
            self.obstacle = self.obstacle or "no two questions have enough in common"
            return
        model, options = self.gaze.model, self._with_defaults(_FIRST_LOGITS)
        try:
            shared = self._generate(split, options).logits[0].float()
        except _CannotForkError:
            self.obstacle = "the cache does not keep every token in every layer"
            return
        except Exception as error:  # the run goes on without sharing
            self.obstacle = f"this model cannot go on from a prefix ({type(error).__name__}: {error})"
            return
        with torch.inference_mode():
            inputs = self.gaze.inputs([list(entry) for entry in images], list(prompts))
            separate = model.generate(**inputs, **options).logits[0].float()
        bound = _ROUNDING.get(model.dtype, _ROUNDING_16_BIT) * float(separate[separate.isfinite()].std())
        difference = torch.where(shared == separate, 0.0, shared - separate)  # a pruned token is -inf in both
        if not float(difference.abs().max()) <= bound:  # also for nan
            self.obstacle = "this model computes something else over a shared prefix"

    def _split(self, images: Sequence[Images], prompts: Sequence[str | Conversation]) -> SplitPrompts | None:
        """The prompts as prefixes and remainders; None where there is nothing to share."""
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
        whole = [row[mask.bool()].tolist() for row, mask in zip(*_text_inputs(inputs), strict=True)]
        short = [self._short_ids(prompt, len(entry)) for prompt, entry in zip(prompts, images, strict=True)]
        ids = [
            expand_images(whole[group], short[leaders[group]], own, frozenset(family.image_token_ids))
            for group, own in zip(groups, short, strict=True)
        ]
        if any(row is None for row in ids):
            return None
        ends = [image_end(family.image_mask(row)) for row in whole]
        media = {name: value for name, value in inputs.items() if name not in ("input_ids", "attention_mask")}
        one_each = all(len(images[i]) == 1 for i in leaders)
        return SplitPrompts.at_common_prefix(
            [row for row in ids if row is not None], groups, ends, media, one_each
        )

    def _short_ids(self, prompt: str | Conversation, images: int) -> list[int]:
        """Token ids of a prompt in which every image is a single placeholder."""
        reader = self.gaze.reader
        text = reader.render(prompt, images).text
        return reader.tokenizer(text, add_special_tokens=reader.adds_special_tokens(text))["input_ids"]

    def _generate(self, split: SplitPrompts, options: Mapping[str, Any]) -> Any:
        with torch.inference_mode():
            if self._starts_at_last_token:
                return self._generate_from_last_token(split, options)
            cache, prefix, prefix_mask = self._forked_cache(split)
            rest, rest_mask = self._pad(split.remainders)
            return self.gaze.model.generate(
                input_ids=torch.cat([prefix, rest], 1),
                attention_mask=torch.cat([prefix_mask, rest_mask], 1),
                **compat.with_cache(options, cache),
            )

    def _generate_from_last_token(self, split: SplitPrompts, options: Mapping[str, Any]) -> Any:
        """Run all but the last token of each prompt on the plain model, and the rest under the method."""
        model, (ids, mask) = self.gaze.model, self._pad(split.prompts)
        with hook.suspended(model):
            cache, _, visible = self._forked_cache(split)
            rest, rest_mask = self._pad([row[:-1] for row in split.remainders])
            if rest.shape[1]:
                visible = torch.cat([visible, rest_mask], 1)
                positions = (visible.cumsum(1) - 1).clamp_min(0)[:, -rest.shape[1] :]
                model(
                    input_ids=rest,
                    attention_mask=visible,
                    position_ids=positions,
                    logits_to_keep=1,
                    **compat.with_cache({}, cache),
                )
                self.prefix_rows += len(rest)
        _remove_gap(cache, visible.bool(), ids.shape[1] - 1)
        hook.adopt_cache(model, cache, {"input_ids": ids, "attention_mask": mask, **split.media_per_prompt()})
        return model.generate(input_ids=ids, attention_mask=mask, **compat.with_cache(options, cache))

    def _forked_cache(self, split: SplitPrompts) -> tuple[Any, Tensor, Tensor]:
        """A cache with the prefix of every prompt, and the prefixes' ids and mask [B, longest prefix]."""
        prefix, visible = self._pad(split.prefixes)
        self.prefix_rows += len(prefix)
        cache = compat.cache_of(
            self.gaze.model(
                input_ids=prefix,
                attention_mask=visible,
                position_ids=(visible.cumsum(1) - 1).clamp_min(0),
                use_cache=True,
                logits_to_keep=1,
                **split.media,
            )
        )
        if cache is None or not compat.is_forkable(cache):
            raise _CannotForkError
        groups = torch.tensor(split.groups)  # on the CPU: layers may lie on several devices
        cache.batch_select_indices(groups)
        return cache, prefix[groups], visible[groups]

    def _pad(self, rows: list[list[int]]) -> tuple[Tensor, Tensor]:
        """Ids and mask [rows, longest] on the model's device, padded on the left."""
        ids, mask = _padded(rows, self.gaze.reader.tokenizer.pad_token_id)
        return ids.to(self.gaze.model.device), mask.to(self.gaze.model.device)

    def _with_defaults(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Options with the defaults of `gaze.ask`."""
        pad = self.gaze.reader.tokenizer.pad_token_id
        return {"max_new_tokens": 128, "do_sample": False, "pad_token_id": pad, **options}


class _CannotForkError(Exception):
    """The cache of a prefix cannot be continued several times."""


def _remove_gap(cache: Any, visible: Tensor, length: int) -> None:
    """Move the visible columns [B, L] of a cache to its end and drop all but the last `length` columns."""
    order = visible.int().sort(dim=1, stable=True).indices
    compat.keep_columns(cache, order[:, visible.shape[1] - length :])


def _padded(rows: list[list[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Ids and mask [rows, longest], padded on the left."""
    length = max(map(len, rows))
    ids = torch.tensor([[pad] * (length - len(row)) + row for row in rows], dtype=torch.int64)
    mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows], dtype=torch.int64)
    return ids, mask


def _text_inputs(inputs: Any) -> tuple[Tensor, Tensor]:
    return inputs["input_ids"].cpu(), inputs["attention_mask"].cpu()
