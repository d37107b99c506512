"""What a method is seen to do in a short generation, to compare with its declared facts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from models import logits_of

import regaze
from regaze.interventions import Intervention
from regaze.kernels import AttentionEdit
from regaze.kernels.policies import offers
from regaze.toolkit.model.callback import Callback, overrides
from regaze.toolkit.model.context import Context

_FIELDS = {
    "mask": ("unmask", "windows"),
    "scores": ("score_slope", "head_mean_slope", "score_gain", "head_score_gain", "bias"),
    "weights": ("head_source", "sink"),
    "keys": ("shifts",),
    "values": ("value_gain", "shifts"),
    "head outputs": ("head_gain",),
}
_OUTPUTS = {
    "edit_mlp": "MLP outputs",
    "edit_attention_output": "attention outputs",
    "edit_vision_mlp": "vision tower",
}


class Observed:
    """One generation under a method.

    Attributes:
        edits, when, needs: as in `Facts`, of those that can be seen.
        prefills: forwards of a prompt. tower: passes of the vision tower. rows: of a step, per prompt.
    """

    def __init__(self, gaze: regaze.Gaze, method: Intervention, inputs: Any, tokens: int = 4):
        self.edits: set[str] = set()
        self.when: set[str] = set()
        self.needs: set[str] = set()
        self.prefills = self.tower = 0
        self.rows = 1.0
        self._left = False
        self._method, self._prompts, self._reading = method, len(inputs["input_ids"]), False
        with self._watching(gaze.model), gaze.using(method):
            logits_of(gaze.model, inputs, tokens)
        for name, part in _OUTPUTS.items():
            if overrides(method, name) and name not in method.inactive:
                self.edits.add(part)
                self.when |= {"prompt"} if part == "vision tower" else {"prompt", "answer"}
        if "vision tower" in self.edits or self.tower > self.prefills:
            self.needs.add("vision tower")

    @property
    def cost(self) -> str:
        if self._left:
            return "fewer rows"
        if self.rows > 1:
            return "two rows" if self.rows == 2 else "many rows"
        if self.prefills > 1:
            return "another prefill"
        return "output head" if "layer logits" in self.needs else "one forward"

    @contextmanager
    def _watching(self, model: Any) -> Iterator[None]:
        kind = type(self._method)
        handles = [
            model.model.language_model.register_forward_pre_hook(self._forward, with_kwargs=True),
            model.model.vision_tower.register_forward_pre_hook(self._saw),
        ]
        with pytest.MonkeyPatch.context() as patch:
            followed = ("edit", self._edit), ("combine_logits", self._combine), ("leaving", self._leave)
            for name, after in followed:
                if getattr(kind, name) is not getattr(Callback, name):
                    patch.setattr(kind, name, self._followed(getattr(kind, name), after))
            for name, note in _READS.items():
                patch.setattr(Context, name, self._noted(getattr(Context, name), note))
            yield
        for handle in handles:
            handle.remove()

    def _followed(self, own: Any, after: Any) -> Any:
        def method(callback: Any, *args: Any) -> Any:
            found = own(callback, *args)
            after(found, args[-1])
            return found

        return method

    def _noted(self, own: Any, note: str) -> Any:
        """A method of the context. Hidden states that are read as logits are no need of their own."""

        def method(context: Any, *args: Any, **kwargs: Any) -> Any:
            outer, self._reading = self._reading, True
            if not outer:
                self.needs.add(note)
            try:
                return own(context, *args, **kwargs)
            finally:
                self._reading = outer

        return method

    def _forward(self, module: Any, args: Any, kwargs: Any) -> None:
        embedded = kwargs["inputs_embeds"]
        self.prefills += embedded.shape[1] > 1
        if embedded.shape[1] == 1:
            self.rows = embedded.shape[0] / self._prompts

    def _saw(self, *args: Any) -> None:
        self.tower += 1

    def _edit(self, edit: AttentionEdit | None, context: Context) -> None:
        if edit is None or edit.neutral:
            return
        self.edits |= {
            part for part, names in _FIELDS.items() if any(getattr(edit, n) not in (None, ()) for n in names)
        }
        if edit.policy is not None:
            self.edits.add("weights")
        if edit.head_mean_slope is not None or _couples(edit.policy, context.num_heads):
            self.needs.add("all heads")
        self._now(context)

    def _leave(self, tokens: Any, context: Context) -> None:
        if tokens is not None:
            self._left = True
            self.edits.add("tokens")
            self._now(context)

    def _combine(self, combination: Any, context: Context) -> None:
        if combination is not None:
            self.edits.add("logits")
            self._now(context)
        if context.has_branches:
            self.needs.add("second context")

    def _now(self, context: Context) -> None:
        self.when.add("prompt" if context.step == 0 or context.replaying else "answer")


#: Methods of a context, and what calling them shows.
_READS = {
    "layer_logits": "layer logits",
    "read_logits": "layer logits",
    "user_hidden": "hidden states",
    "hidden_states": "hidden states",
    "captured_hidden": "hidden states",
}


def _couples(policy: Any, heads: int) -> bool:
    """Whether coefficients of a head follow from masses of others."""
    return policy is not None and offers(policy, "triton_part") and policy.triton_part(heads).couples_heads
