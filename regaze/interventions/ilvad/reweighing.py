"""The second answer: attention on the evidence, and on text by how much of the evidence it saw."""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from regaze.errors import InputError
from regaze.interventions.common.ranking import half_of_heads
from regaze.interventions.ilvad.evidence import grounding, text_factors
from regaze.interventions.ilvad.policy import IMAGE, OTHER, TEXT, RaiseEvidence
from regaze.interventions.layer_ranges import LayerRange, attention_range
from regaze.kernels import AttentionEdit, Channels, RowSelection, Stats, StatsRequest
from regaze.toolkit.model.callback import Callback
from regaze.toolkit.model.context import Context
from regaze.toolkit.prompts.columns import column_index, scatter_columns
from regaze.toolkit.prompts.token_map import Role

#: What is done in a layer: outside of the edited ones, and in them.
_Edits = tuple[AttentionEdit, AttentionEdit]


class Settings(Protocol):
    """The parameters of `ILVAD` that the second answer needs."""

    @property
    def alpha(self) -> float: ...
    @property
    def beta(self) -> float: ...
    @property
    def layers(self) -> LayerRange | None: ...
    @property
    def score_of(self) -> str: ...


class Reweighing(Callback):
    """Edits the rows that predict the answer, and keeps the grounding of every token of the text.

    Of each sequence it keeps what the rows of the forward saw in its layers so far: `sum` [batch, R], `again`
    [batch, 1] of the prompt's last row where that runs once more; and `scores` [batch, keys], the grounding
    of tokens, which grow with the answer.

    Args:
        evidence: [B, n], of the image tokens of the questions, in order.
    """

    plans_ahead = True
    counts_steps = True

    def __init__(self, method: Settings, evidence: Tensor):
        self._method, self._evidence = method, evidence

    # The prompt ---------------------------------------------------------------------------------------

    def prepare(self, context: Context) -> None:
        tokens, state = context.tokens, context.state(self)
        evidence = self._placed(context)
        acts = evidence.amax(1, keepdim=True) > 0
        if not acts.any():
            return
        state["layers"] = attention_range(context, self._method.layers, (5, 25))
        image, last, text = tokens.mask(Role.IMAGE), tokens.last(), tokens.after_last_image()
        groups = torch.where(text, TEXT, torch.where(image, IMAGE, OTHER)).to(torch.uint8)
        state["columns"] = groups, evidence, torch.where(image, evidence.exp(), 0.0)
        state["text"], state["last"] = text, last
        state["policy"] = RaiseEvidence(half_of_heads(context.num_heads))
        seen = Channels(weights=torch.stack([image.float(), evidence]))
        state["measured"] = RowSelection.where((text | last) & acts)
        state["requests"] = StatsRequest(state["measured"], seen), StatsRequest(channels=seen)
        state["row"] = None if acts.all() else RowSelection.where(acts)
        edit = self._edit(state, torch.ones_like(evidence))
        state["again"] = self._with_request(state, edit)
        edit = edit.replace(rows=RowSelection.where(last & acts), stats=state["requests"][0])
        state["prompt"] = state["requests"][0].as_edit, edit

    def _placed(self, context: Context) -> Tensor:
        """[batch, L] alpha times the evidence at its columns; 0 in other contexts than the user's."""
        image = context.tokens.mask(Role.IMAGE)[: context.user_batch]
        index, (samples, count) = column_index(image), self._evidence.shape
        copies = len(index) // samples  # beams repeat their prompt
        if index.shape[1] != count or len(index) != copies * samples:
            raise InputError(
                f"the first answer was about {samples} prompts with up to {count} image tokens, the second "
                f"is about {len(index)} with up to {index.shape[1]}"
            )
        placed = scatter_columns(self._evidence.repeat_interleave(copies, 0), index, image.shape[1], 0.0)
        return self._method.alpha * F.pad(placed, (0, 0, 0, context.batch - len(index)))

    def _edit(self, state: dict[str, Any], factors: Tensor) -> AttentionEdit:
        """The edit of a single row under which the text has these factors, [batch, keys]."""
        state["columns"] = tuple(part.to(factors.device) for part in state["columns"])
        more = factors.shape[1] - state["columns"][0].shape[1]
        groups, evidence, gains = (F.pad(part, (0, more)) for part in state["columns"])
        weights = torch.stack([evidence, gains, factors * (groups == TEXT)])
        channels = Channels(groups, num_groups=3, weights=weights)
        return AttentionEdit(state["row"], channels=channels, policy=state["policy"])

    @staticmethod
    def _with_request(state: dict[str, Any], edit: AttentionEdit) -> _Edits:
        request: StatsRequest = state["requests"][1]
        return request.as_edit, edit.replace(stats=request)

    # The layers ---------------------------------------------------------------------------------------

    def edit(self, layer: int, step: int, context: Context) -> AttentionEdit | None:
        state = context.state(self)
        if "layers" not in state:
            return None
        if step == 0:
            edits = state["prompt"]
        else:
            edits = self._of_row(state, layer, context.replaying)
        edit: AttentionEdit = edits[self._edited(state, layer)]
        return edit

    def _edited(self, state: dict[str, Any], layer: int) -> bool:
        first, last = state["layers"]
        return bool(first <= layer <= last)

    def _of_row(self, state: dict[str, Any], layer: int, replaying: bool) -> _Edits:
        """What a layer does with a single row: of a step, or the prompt's last one once more."""
        edits: _Edits = state["again" if replaying else "step"]
        return edits

    def on_stats(self, layer: int, stats: Stats, context: Context) -> None:
        assert stats.masses is not None
        seen, kept = grounding(*stats.masses.unbind(-1)), context.row_state(self)
        name = "again" if context.replaying else "sum"
        kept[name] = kept[name] + seen.to(kept[name].device) if name in kept else seen

    # The steps ----------------------------------------------------------------------------------------

    def on_step(self, context: Context, input_ids: Tensor | None) -> None:
        """Score the tokens whose rows have run, and plan the step with the factors of all."""
        state, kept = context.state(self), context.row_state(self)
        if context.step == 0 or "layers" not in state:
            return
        if input_ids is None or input_ids.shape[1] != 1:
            raise InputError("ILVAD follows an answer token by token; feed one in each step")
        if context.step == 1:
            self._score_prompt(state, kept)
        self._plan(state, kept, context.step)

    def _score_prompt(self, state: dict[str, Any], kept: dict[str, Tensor]) -> None:
        """Put what the prompt's rows saw at their columns, and leave in `sum` what the last one saw."""
        sums = kept["sum"]
        state["text"], state["last"] = (state[name].to(sums.device) for name in ("text", "last"))
        rows = state["measured"].to(sums.device).index
        kept["scores"] = at_columns(sums, rows, state["text"].shape[1])
        last = state["last"].int().argmax(1, keepdim=True)
        kept["sum"] = kept.pop("again") if "again" in kept else kept["scores"].gather(1, last)

    def _plan(self, state: dict[str, Any], kept: dict[str, Tensor], step: int) -> None:
        row, scores = kept.pop("sum"), kept["scores"]
        if self._method.score_of == "own":
            newest = state["last"] if step == 1 else F.pad(torch.zeros_like(scores[:, 1:]), (0, 1), value=1.0)
            scores = F.pad(torch.where(newest.bool(), row, scores), (0, 1))
            scored = F.pad(F.pad(state["text"], (0, step - 1), value=True), (0, 1))
        else:
            scores = torch.cat([scores, row], 1)
            scored = F.pad(state["text"] & ~state["last"], (0, step), value=True)
        kept["scores"] = scores
        factors, _ = text_factors(scores, scored, self._method.beta)
        state["step"] = self._with_request(state, self._edit(state, factors))


class AsReleased(Reweighing):
    """The scores of the released code.

    The prompt's last token has a score of 0. Its row is edited in each layer by what the layers up to this
    one have seen, which takes a run of its own. Scores are held within 3 deviations in every edited layer,
    again and again.
    """

    def prepare(self, context: Context) -> None:
        super().prepare(context)
        state = context.state(self)
        if "layers" in state:
            state["prompt"] = (state["requests"][0].as_edit,) * 2
            state["partial"] = {}
            context.replay_last_row()

    def _of_row(self, state: dict[str, Any], layer: int, replaying: bool) -> _Edits:
        plain = state["requests"][1].as_edit
        edits: _Edits = state["partial" if replaying else "step"].get(layer, (plain, plain))
        return edits

    def on_stats(self, layer: int, stats: Stats, context: Context) -> None:
        state, kept = context.state(self), context.row_state(self)
        if context.step > 0:
            super().on_stats(layer, stats, context)
            return
        assert stats.masses is not None
        seen = grounding(*stats.masses.unbind(-1))
        text, last = (state[name].to(seen.device) for name in ("text", "last"))
        seen = at_columns(seen, state["measured"].to(seen.device).index, text.shape[1]).masked_fill(last, 0.0)
        kept["scores"] = kept["scores"].to(seen.device) + seen if "scores" in kept else seen
        if self._edited(state, layer):
            self._hold(state, kept, text, state["partial"], layer)

    def _score_prompt(self, state: dict[str, Any], kept: dict[str, Tensor]) -> None:
        kept["sum"] = kept.pop("again")

    def _plan(self, state: dict[str, Any], kept: dict[str, Tensor], step: int) -> None:
        kept["scores"] = torch.cat([kept["scores"], kept.pop("sum").to(kept["scores"].device)], 1)
        scored = F.pad(state["text"].to(kept["scores"].device), (0, step), value=True)
        state["step"] = {}
        for layer in range(state["layers"][0], state["layers"][1] + 1):
            self._hold(state, kept, scored, state["step"], layer)

    def _hold(
        self,
        state: dict[str, Any],
        kept: dict[str, Tensor],
        scored: Tensor,
        edits: dict[int, _Edits],
        layer: int,
    ) -> None:
        factors, kept["scores"] = text_factors(kept["scores"], scored, self._method.beta)
        edits[layer] = self._with_request(state, self._edit(state, factors))


def at_columns(values: Tensor, index: Tensor, length: int) -> Tensor:
    """Values [batch, R] at columns `index` [R] of [batch, length], 0 elsewhere."""
    return values.new_zeros(values.shape[0], length).index_copy(1, index, values)
