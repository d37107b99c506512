"""Open-vocabulary maps: where rows of a text look that is neither in the prompt nor in the answer."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from regaze.display import short_repr
from regaze.errors import BadParameterError, InputError, ShapeError, UnsupportedModelError
from regaze.kernels import StatsRequest, attend
from regaze.progress import Progress, reporting
from regaze.toolkit.analysis.answers import followed_by, token_map_of
from regaze.toolkit.analysis.forward import EachDevice
from regaze.toolkit.analysis.selection import check_choice, check_choices
from regaze.toolkit.model import compat
from regaze.toolkit.model.attention_call import AttentionCall
from regaze.toolkit.model.callback import Callback
from regaze.toolkit.model.context import Context
from regaze.toolkit.model.hook import adopt_cache
from regaze.toolkit.prompts.token_map import Role, TokenMap
from regaze.toolkit.wrap import Gaze


@dataclass(frozen=True, eq=False)
class PhraseEmbedding:
    """What the model is given in place of a phrase's own embeddings, see `optimise_phrase`.

    Attributes:
        text: the phrase. values: [T, D] an embedding for each of its tokens. losses: before each step.
    """

    text: str
    values: Tensor
    losses: tuple[float, ...] = ()

    __repr__ = short_repr


Phrase = str | PhraseEmbedding


class PhraseMaps:
    """Maps over the images of a prompt for phrases that are neither in it nor in its answer.

    A phrase is appended to what the model has read, in a copy of its key-value cache: the rows of the phrase
    look at the prompt's keys, and no row of prompt or answer ever sees the phrase. Other maps need a word
    that somebody has said; here one prompt, run once, is asked about any text.

    Source: the idea of Marcos-Manchón et al., "Open-Vocabulary Attention Maps with Token Optimization for
    Semantic Segmentation in Diffusion Models" (OVAM, arXiv:2403.14291), where the keys of new texts meet the
    kept queries of an image. A language model has it the other way round: the image is among the keys, and
    the queries are new. OVAM's scores have no softmax over tokens, see `scores`.

    Args:
        gaze: the wrapped model. inputs: of one prompt, from `gaze.inputs`.
        cache: what `model.generate(**inputs, return_dict_in_generate=True)` has returned, or its key-value
            cache, which is not changed: phrases then come after the answer. Give it right after the
            generation. None: the prompt runs here.

    Raises:
        InputError: several prompts, a prompt without an image among its tokens, or a cache that is not that
            of one prompt. UnsupportedModelError: the model keeps no cache.
    """

    gaze: Gaze
    tokens: TokenMap

    def __init__(self, gaze: Gaze, inputs: Mapping[str, Any], cache: Any = None):
        self.gaze, self.tokens = gaze, token_map_of(gaze, inputs)
        ids = inputs["input_ids"]
        if len(ids) != 1:
            raise InputError(f"PhraseMaps is about one prompt, got {len(ids)}: make one for each")
        if not bool(self.tokens.mask(Role.IMAGE).any()):
            raise InputError("the prompt has no image among its tokens, so there is no map of it")
        if cache is None:
            known = inspect.signature(gaze.model.forward).parameters
            few = {"logits_to_keep": 1} if "logits_to_keep" in known else {}
            with torch.no_grad():
                cache = compat.cache_of(
                    gaze.model(**{**inputs, "use_cache": True, "return_dict": True}, **few)
                )
        cache = cache if (held := compat.cache_of(cache)) is None else held
        if cache is None:
            raise UnsupportedModelError(
                f"{type(gaze.model).__name__} keeps no key-value cache of a prompt to go on from"
            )
        more = compat.cache_length(cache) - ids.shape[1]
        if more < 0:
            raise InputError(
                f"the prompt has {ids.shape[1]} tokens, but the cache holds {more + ids.shape[1]}: give the "
                "one that generate filled with this prompt"
            )
        mask = inputs.get("attention_mask")
        self._cache, self._prompt = cache, ids
        self._visible = F.pad(torch.ones_like(ids) if mask is None else mask, (0, more), value=1)
        deltas = compat.take_rope_deltas(gaze.model, 1) if compat.has_mrope(gaze.model) else None
        self._deltas = None if deltas is None else deltas.clone()
        counts = compat.counts_positions(gaze.model, inputs)
        # A model counts its own way (PaliGemma from 1), but not past padding.
        self._own_positions = not compat.has_mrope(gaze.model) and (counts or bool(self._visible.all()))

    def __repr__(self) -> str:
        read = self._visible.shape[1]
        return f"PhraseMaps({type(self.gaze.model).__name__} after {read} tokens, {self.tokens!r})"

    def of(
        self,
        phrases: Phrase | Sequence[Phrase],
        *,
        rows: Literal["last", "mean"] = "last",
        over: Literal["mean", "max", "none"] = "mean",
        scores: bool = False,
        layers: Sequence[int] | None = None,
        heads: Sequence[int] | None = None,
        image: int = 0,
    ) -> Tensor:
        """Maps [P, rows, columns] of P phrases over an image, fp32 on the CPU.

        Inside `gaze.using(...)` the phrases' rows are edited as those of an answer are.

        Args:
            phrases: texts, or embeddings from `optimise_phrase`. A space is put before a text.
            rows: the phrase's "last" token, which has read all of it, or the "mean" over its tokens.
            over: reduction over layers and heads, as for `image_map`: "none" gives
                [P, layers, heads, rows, columns].
            scores: maps of the scores before the softmax, as in OVAM, rather than of the weights.
            layers, heads: numbers; None: all. image: number of the image's view.

        Raises:
            BadParameterError: a choice that does not exist, or a phrase without a token. InputError: an image
            without a grid. UnsupportedModelError: a method that is open has second contexts.
        """
        if over not in ("mean", "max", "none"):
            raise BadParameterError(f'over must be "mean", "max" or "none", got {over!r}')
        given = [phrases] if isinstance(phrases, str | PhraseEmbedding) else list(phrases)
        with torch.no_grad():
            maps = self.layer_maps(given, rows=rows, scores=scores, layers=layers, heads=heads, image=image)
        if over == "none":
            return maps.cpu()
        return (maps.mean((1, 2)) if over == "mean" else maps.amax((1, 2))).cpu()

    def layer_maps(
        self,
        phrases: Sequence[Phrase],
        *,
        rows: str = "last",
        scores: bool = False,
        layers: Sequence[int] | None = None,
        heads: Sequence[int] | None = None,
        image: int = 0,
    ) -> Tensor:
        """As `of` with over="none", on the model's device and, where embeddings need it, with a graph."""
        if rows not in ("last", "mean"):
            raise BadParameterError(f'rows must be "last" or "mean", got {rows!r}')
        grids = self.tokens.grids[0]
        if not grids:
            raise InputError("the image's tokens have no known places, so there is no map")
        image = check_choice("image", image, range(len(grids)))
        ids, real = self._tokenised(phrases)
        probe = _RowProbe(self.tokens.image_cells(0, image), scores)
        self._run(ids, real, phrases, probe)
        chosen = check_choices("layer", layers, sorted(probe.maps))
        weights = torch.stack([probe.maps[layer].to(ids.device) for layer in chosen], 1)  # [P, S, Hq, T, n]
        weights = weights[:, :, check_choices("head", heads, range(weights.shape[2]))]
        shown = real.to(weights)
        if rows == "last":
            shown = F.one_hot(real.sum(1) - 1, real.shape[1]).to(weights)
        kept = (weights * shown[:, None, None, :, None]).sum(3) / shown.sum(1)[:, None, None, None]
        return kept.unflatten(-1, grids[image])

    def _tokenised(self, phrases: Sequence[Phrase]) -> tuple[Tensor, Tensor]:
        """Ids [P, T] and which of them are real; the others are padding on the right."""
        device = self._prompt.device
        rows = [token_ids(self.gaze, each) for each in phrases]
        if not rows:
            raise BadParameterError("give at least one phrase")
        longest = max(map(len, rows))
        pad = getattr(self.gaze.reader.tokenizer, "pad_token_id", None) or 0
        ids = torch.tensor([row + [pad] * (longest - len(row)) for row in rows], device=device)
        lengths = torch.tensor([len(row) for row in rows], device=device)
        return ids, torch.arange(longest, device=device) < lengths[:, None]

    def _run(self, ids: Tensor, real: Tensor, phrases: Sequence[Phrase], probe: Callback) -> None:
        """Rows of the phrases over a fork of the cache, which ends with this call."""
        gaze, count, length = self.gaze, *ids.shape
        cache = compat.fork(self._cache, count)
        visible = torch.cat([self._visible.repeat(count, 1), real.to(self._visible)], 1)
        given: dict[str, Any] = {"input_ids": ids, "attention_mask": visible, "return_dict": True}
        if "position_ids" in inspect.signature(gaze.model.forward).parameters and not self._own_positions:
            positions = (visible.cumsum(1) - 1)[:, -length:]
            mrope = compat.has_mrope(gaze.model)
            given["position_ids"] = compat.mrope_positions(positions, self._deltas) if mrope else positions
        added = visible[:, self.tokens.length :].cpu().bool()
        whole = {"input_ids": F.pad(self._prompt.repeat(count, 1), (0, added.shape[1]))}
        tokens = followed_by(self.tokens.repeat(count), added)
        with gaze.using(probe, tokens=tokens), self._embedded(phrases):
            adopt_cache(gaze.host, cache, {**whole, "attention_mask": visible})
            gaze.model(**compat.with_cache(given, cache))

    def _embedded(self, phrases: Sequence[Phrase]) -> Any:
        """A block in which the model's input embeddings are those of each `PhraseEmbedding`."""
        own = {row: each.values for row, each in enumerate(phrases) if isinstance(each, PhraseEmbedding)}

        def put(module: Any, args: Any, output: Tensor) -> Tensor:
            rows = list(output.unbind(0))
            for row, values in own.items():
                rows[row] = torch.cat([values.to(output), rows[row][len(values) :]])
            return torch.stack(rows)

        return compat.temporary_hooks([], [(self.gaze.model.get_input_embeddings(), put)] if own else [])


class _RowProbe(Callback):
    """Keeps, of each layer, what the rows of a forward give some columns, [P, Hq, T, n]."""

    def __init__(self, columns: Tensor, scores: bool):
        self.columns, self.scores = EachDevice(columns), scores
        self.maps: dict[int, Tensor] = {}

    def on_attention(self, layer: int, call: AttentionCall, context: Context) -> None:
        dropped = context.cache_length + call.query.shape[2] - call.key.shape[2]  # by a sliding window
        columns = (self.columns.to(call.key.device).tensor - dropped).clamp_min(-1)
        self.maps[layer] = _scores(call, columns) if self.scores else _weights(call, columns)


def _weights(call: AttentionCall, columns: Tensor) -> Tensor:
    """Weights of columns [n] as the layer used them, with their graph; 0 for column -1."""
    edit = call.edit.replace(stats=StatsRequest(columns=columns[None], edited=True))
    stats = attend(call.query, call.key, call.value, edit, backend="reference", **call.options)[1]
    assert stats is not None
    assert stats.slices is not None
    return stats.slices


def _scores(call: AttentionCall, columns: Tensor) -> Tensor:
    """Scores of columns [n] before the mask and the softmax, with their graph; 0 for column -1."""
    keys = call.key[:, :, columns.clamp_min(0)].float()
    keys = keys.repeat_interleave(call.query.shape[1] // keys.shape[1], 1)
    scores = call.query.float() @ keys.mT * call.options["scaling"]
    if (cap := call.options["softcap"]) is not None:
        scores = cap * torch.tanh(scores / cap)
    return scores * (columns >= 0)


def token_ids(gaze: Gaze, phrase: Phrase) -> list[int]:
    """The ids of a phrase's tokens; a space before it makes its first word one within a text.

    Raises:
        BadParameterError: it has none. InputError: `regaze.wrap` was given no tokenizer.
    """
    text, tokenizer = phrase if isinstance(phrase, str) else phrase.text, gaze.reader.tokenizer
    if tokenizer is None:
        raise InputError("a phrase is read by the tokenizer, and regaze.wrap was given none")
    spaced = text if text[:1].isspace() else f" {text}"
    ids: list[int] = tokenizer(spaced, add_special_tokens=False)["input_ids"] if text.strip() else []
    if not ids:
        raise BadParameterError(f"the phrase {text!r} has no token")
    if isinstance(phrase, PhraseEmbedding) and len(phrase.values) != len(ids):
        raise BadParameterError(f"{text!r} has {len(ids)} tokens, but {len(phrase.values)} embeddings")
    return ids


def optimise_phrase(
    examples: Sequence[tuple[PhraseMaps, Tensor]],
    text: str,
    *,
    steps: int = 60,
    rate: float = 0.1,
    rows: Literal["last", "mean"] = "last",
    scores: bool = False,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    image: int = 0,
    progress: Callable[[int], None] | bool | None = None,
) -> PhraseEmbedding:
    """Fit a phrase's embeddings to a few images in which its place is known; the model is not changed.

    The mean map, as a distribution p over the cells, is fitted to the share t of each cell that the object
    covers: Adam minimises the cross-entropy -sum t log p, from the phrase's own embeddings. OVAM, whose idea
    this is, scales the map from 0 to 1 first and descends by SGD with a rate of 300, made for the embeddings
    of Stable Diffusion.

    Args:
        examples: the maps of a prompt, and the share of each cell that the object covers there,
            [rows, columns] (`covered_share`).
        text: what to begin with. Any text works; more tokens have more parameters.
        steps: of Adam. rate: its step, as a share of the root mean square of the first embeddings.
        rows, scores, layers, heads, image: as for `PhraseMaps.of`, for which the embeddings are then good.
        progress: called with the number of each step that is done. None: a bar where one
            is seen (a terminal, a notebook); True: always; False: never.

    Raises:
        BadParameterError: no examples, no steps or a rate that is not positive. ShapeError: a share of
            another shape than the map. InputError: an object that covers nothing.
    """
    if not examples or steps < 1 or rate <= 0:
        raise BadParameterError(
            "optimise_phrase takes at least one example and one step, and a positive rate"
        )
    gaze, device = examples[0][0].gaze, examples[0][0].gaze.model.device
    chosen: dict[str, Any] = {
        "rows": rows,
        "scores": scores,
        "layers": layers,
        "heads": heads,
        "image": image,
    }
    losses = []
    shown: Progress | bool | None = (lambda _, done, __: progress(done)) if callable(progress) else progress
    with torch.inference_mode(False), torch.enable_grad(), reporting(shown) as report:
        ids = torch.tensor(token_ids(gaze, text), device=device)
        values = gaze.model.get_input_embeddings()(ids).detach().float().requires_grad_()
        adam = torch.optim.Adam([values], lr=rate * float(values.detach().square().mean().sqrt()))
        for step in range(steps):
            found = [each.layer_maps([PhraseEmbedding(text, values)], **chosen)[0] for each, _ in examples]
            terms = [
                _cross_entropy(maps.mean((0, 1)), share, scores)
                for maps, (_, share) in zip(found, examples, strict=True)
            ]
            loss = torch.stack(terms).mean()
            (values.grad,) = torch.autograd.grad(loss, [values])
            adam.step()
            losses.append(float(loss.detach()))
            report("steps", step + 1, steps)
    return PhraseEmbedding(text, values.detach().clone(), tuple(losses))


def _cross_entropy(found: Tensor, share: Tensor, scores: bool) -> Tensor:
    """-sum t log p over the cells of a map; the graph is that of the map."""
    if found.shape != share.shape:
        raise ShapeError(f"the map is {list(found.shape)}, but the shares are {list(share.shape)}")
    if not float(share.sum()) > 0:
        raise InputError("the object covers no cell, so there is nothing to fit to")
    target = (share / share.sum()).to(found).flatten()
    flat = found.flatten()
    tiny = torch.finfo(flat.dtype).tiny
    logs = flat.log_softmax(0) if scores else (flat / flat.sum().clamp_min(tiny)).clamp_min(tiny).log()
    return -(target * logs).sum()
