"""AD-HH: adaptive deactivation of hallucination heads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from os import fspath
from typing import Any, ClassVar, Literal, cast

import torch
from pydantic import NonNegativeFloat

from regaze.errors import BadParameterError, InputError
from regaze.interventions.adhh.policy import DropHeavyChannel
from regaze.interventions.base import Intervention, Method
from regaze.interventions.controls import RandomHeads
from regaze.interventions.facts import Facts
from regaze.interventions.parameters import Heads, Parameter
from regaze.kernels import AttentionEdit, Channels, RowSelection
from regaze.reading import StrPath, parse_json, read_text
from regaze.toolkit.model.context import Context
from regaze.toolkit.prompts.token_map import Role

_HEADS = Parameter.of("heads", Heads)

#: The authors' heads by layers and query heads of LLaVA-1.5-7B, LLaVA-1.5-13B; most influential first.
# fmt: off
PUBLISHED: dict[tuple[int, int], Heads] = {
    (32, 32): (
        (16, 29), (26, 9), (13, 31), (15, 10), (20, 12), (30, 9), (19, 18), (17, 0), (18, 9), (26, 28),
        (19, 27), (18, 26), (15, 25), (14, 16), (31, 26), (15, 24), (31, 3), (22, 20), (27, 29), (17, 28),
    ),
    (40, 40): (
        (0, 8), (29, 27), (23, 18), (20, 11), (36, 26), (19, 37), (22, 16), (22, 34), (21, 31), (20, 34),
        (37, 11), (17, 25), (35, 10), (17, 5), (15, 26), (0, 22), (19, 5), (19, 0), (14, 1), (23, 20),
        (21, 6), (30, 24), (26, 27), (21, 32), (15, 28), (15, 31), (19, 30), (20, 8), (19, 14), (14, 9),
        (39, 26), (25, 1), (18, 32), (17, 27), (39, 32),
    ),
}
# fmt: on


@dataclass(frozen=True)
class ADHH(Intervention):
    """Remove the attention to text in hallucination heads that rely on it.

    Source: Yang et al., "Mitigating Hallucinations in Large Vision-Language Models via Modular Attribution
    and Intervention" (ICLR 2025). In each listed head and each row that predicts the answer: where the text
    after the image, generated tokens included, holds at least `threshold` of the attention, its weights
    become 0. The row is not renormalised. Heads are found once per model (`find_hallucination_heads`). Those
    of LLaVA-1.5-7B and 13B are known, and those that a configuration lists as `hallucination_heads`.
    """

    name: ClassVar[str] = "adhh"
    summary: ClassVar[str] = "remove the attention to text in hallucination heads that rely on it"
    source: ClassVar[str] = "ICLR 2025, Modular Attribution and Intervention"
    edits: ClassVar[str] = "attention weights of the rows that predict the answer, in a list of heads"
    cost: ClassVar[str] = "one forward"
    facts: ClassVar[Facts] = Facts(edits=("weights",), cost="one forward", needs=("head list",))
    release: ClassVar[str] = (
        "TianyunYoung/Hallucination-Attribution, no licence. Sums a head's text mass over the batch, so that "
        "samples affect each other; constant image columns. Here every row is decided by itself."
    )
    fixed_edits = True

    heads: Heads | None = field(
        default=None, metadata={"help": "(layer, query head) pairs; default: the published ones"}
    )
    threshold: NonNegativeFloat = field(
        default=0.4, metadata={"help": "least attention on text at which it is removed (above 1: never)"}
    )

    @classmethod
    def from_file(cls, path: StrPath, top_k: int | None = None, **parameters: Any) -> ADHH:
        """AD-HH with the first `top_k` heads (None: all) of a JSON file {"hal_heads": [[layer, head], ...]}.

        Raises:
            InputError: no such file, or no such list in it.
        """
        path = fspath(path)
        content = parse_json(read_text(path), path)
        try:
            heads = content["hal_heads"]
        except (KeyError, TypeError) as error:
            raise InputError(f'{path} has no list "hal_heads" of [layer, head] pairs: {error}') from None
        return cls(heads=_HEADS.checked(heads, cls.name)[:top_k], **parameters)

    @property
    def shares_prefix(self) -> Literal["", "edited", "plain"]:
        return "plain"

    @property
    def is_identity(self) -> bool:
        return self.threshold > 1.0 or self.heads == ()

    def controls(self) -> Sequence[Method]:
        return () if self.is_identity else (RandomHeads(self),)

    def heads_in(self, config: Any) -> Heads:
        """The heads in which it acts in a language model with this configuration; errors as `known_heads`."""
        return known_heads(config) if self.heads is None else self.heads

    def prepare(self, context: Context) -> None:
        tokens, state = context.tokens, context.state(self)
        has_image = tokens.mask(Role.IMAGE).any(1, keepdim=True)
        if self.is_identity or not has_image.any():
            return
        by_layer: dict[int, list[int]] = {}
        for layer, head in self.heads_in(context.config):
            if layer >= context.num_layers or head >= context.num_heads:
                raise BadParameterError(
                    f"head {(layer, head)} does not exist: the model has layers 0..{context.num_layers - 1} "
                    f"with query heads 0..{context.num_heads - 1}"
                )
            if layer not in context.self_layers:
                raise BadParameterError(f"head {(layer, head)} does not exist: its layer has no attention")
            by_layer.setdefault(layer, []).append(head)
        # Group 0 is the text after the image: generated keys are in it by construction.
        channels = Channels(groups=(~tokens.after_image()).to(torch.uint8), num_groups=2)
        prompt = RowSelection.where(tokens.answering() & has_image)
        answer = None if bool(has_image.all()) else RowSelection(torch.tensor([0]), has_image)
        for layer, heads in by_layer.items():
            policy = DropHeavyChannel(2, channel=0, threshold=self.threshold, heads=tuple(sorted(heads)))
            edit = AttentionEdit(rows=answer, channels=channels, policy=policy)
            state[layer] = edit.about(prompt), edit

    def edit(self, layer: int, step: int, context: Context) -> AttentionEdit | None:
        edits = context.state(self).get(layer)
        return None if edits is None else edits[min(step, 1)]


def known_heads(config: Any) -> Heads:
    """Hallucination heads of a language model: those that its configuration lists, or published ones.

    Raises:
        BadParameterError: none are known.
    """
    if (listed := getattr(config, "hallucination_heads", None)) is not None:
        return cast(Heads, _HEADS.checked(listed, ADHH.name))
    heads, vicuna = config.num_attention_heads, config.vocab_size in (32000, 32064)
    published = PUBLISHED.get((config.num_hidden_layers, heads))
    if config.model_type != "llama" or not vicuna or published is None:
        raise BadParameterError(
            "the hallucination heads of this model are not published; find them with "
            "regaze.interventions.adhh.find_hallucination_heads and give heads=((layer, head), ...)"
        )
    return published
