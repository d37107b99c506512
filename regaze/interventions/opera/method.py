"""OPERA: over-trust penalty and retrospection-allocation."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, ClassVar

import torch
from PIL import Image
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from regaze.interventions.base import MultiPassMethod
from regaze.interventions.facts import Facts
from regaze.interventions.opera.beam_search import BeamSearch, SearchRules, StopCriteria
from regaze.interventions.opera.last_layer import LastLayerAttention
from regaze.toolkit.model.continuations import Continuations, read_stop
from regaze.toolkit.prompts.token_map import Role
from regaze.toolkit.wrap import Gaze


@dataclass(frozen=True, eq=False)
class OperaAnswer:
    """The answer of a search; `str` gives its text.

    Attributes:
        ids: its tokens, the one that ends it included.
        score: as beam search scores it, penalties included.
        rollbacks: for each time the search went back, the position in the answer of the token chosen again.
    """

    answer: str
    ids: tuple[int, ...]
    score: float
    rollbacks: tuple[int, ...]

    def __str__(self) -> str:
        return self.answer


@dataclass(frozen=True)
class OPERA(MultiPassMethod):
    """Beam search against answers whose tokens all lean on one earlier token.

    Source: Huang et al., "OPERA: Alleviating Hallucination in Multi-Modal Large Language Models via
    Over-Trust Penalty and Retrospection-Allocation" (arXiv:2311.17911). Let w_ij be the last layer's
    attention of answer token i on answer token j: the strongest head's, divided by the sum over all keys.
    Column j scores 1e-7 prod_{i>=j} scale w_ij. Each beam's `candidates` likeliest tokens are run, and their
    logits lowered by `penalty_weight` times the strongest column's score; the first `reward_tokens` tokens of
    an answer are raised by their attention on the image instead. Where every beam's strongest column has been
    the strongest more than `threshold` times, the search goes back to the token after that column and forbids
    the tokens that were chosen there, `max_rollbacks` times per position, then one position earlier.

    The paper's softmax is over candidates; it does not say what becomes of the other tokens' probability.
    Here they keep it, so that without a penalty this is beam search; with `as_released=True` (`shikiw/OPERA`)
    the candidates share all of it, which favours the least confident beams. All beams start from one prompt,
    which gives as many candidates as they need. Where beams lean on different columns the search goes back to
    the earliest, and tokens are forbidden to all beams. Logits processors (repetition penalty) are not
    applied.

    It has no control of its own: without its penalty it is the beam search of `generate`, which is to be
    compared with as an option (`num_beams`), not as a method.
    """

    name: ClassVar[str] = "opera"
    summary: ClassVar[str] = "beam search that avoids answers leaning on one token, and goes back from them"
    source: ClassVar[str] = "arXiv:2311.17911"
    edits: ClassVar[str] = "scores of beam search's candidates at every step; the forwards are not changed"
    cost: ClassVar[str] = (
        "num_beams x candidates rows in one forward per token, with the cache of all; going back runs the "
        "answer so far once more, in one forward"
    )
    facts: ClassVar[Facts] = Facts(
        edits=("search",),
        when=("answer",),
        cost="many rows",
        graphs="outside",
        needs=("own search", "all heads", "attention rows"),
    )
    release: ClassVar[str] = (
        "shikiw/OPERA, MIT. Column products in half precision, which over- and underflow; one candidate per "
        "forward; going back runs the prompt again; beams other than the first start from arbitrary tokens "
        "when there is one candidate. Here products are sums of logarithms, and the cache is cut."
    )

    num_beams: PositiveInt = field(default=5, metadata={"help": "beams"})
    candidates: PositiveInt = field(
        default=5, metadata={"help": "likeliest tokens of each beam that are tried"}
    )
    scale: PositiveFloat = field(
        default=50.0, metadata={"help": "sigma, factor of attention weights in products"}
    )
    penalty_weight: NonNegativeFloat = field(
        default=1.0, metadata={"help": "alpha, factor of the penalty (0: none)"}
    )
    window: PositiveInt | None = field(
        default=None, metadata={"help": "only the last so many answer tokens count (default: all)"}
    )
    reward_tokens: NonNegativeInt = field(
        default=10, metadata={"help": "first answer tokens that gain by attention on the image instead"}
    )
    # From 2 on: only a column that came up three times is followed by a token that was chosen.
    threshold: Annotated[int, Field(ge=2)] = field(
        default=15, metadata={"help": "go back once a column has won more often than this"}
    )
    min_position: NonNegativeInt = field(
        default=10, metadata={"help": "first answer token (from 0) to go back to"}
    )
    max_rollbacks: NonNegativeInt = field(
        default=5, metadata={"help": "how often to go back to a position (0: never)"}
    )
    as_released: bool = field(
        default=False, metadata={"help": "let the candidates share all probability, as the code does"}
    )

    @property
    def is_identity(self) -> bool:
        """Whether this is the beam search of `generate`; only rounding is its own."""
        return self.penalty_weight == 0.0 and self.max_rollbacks == 0 and not self.as_released

    @property
    def rules(self) -> SearchRules:
        """These parameters as the search takes them."""
        return SearchRules(**asdict(self))

    def answer_batch(
        self, gaze: Gaze, images: list[list[Image.Image]], questions: list[str], options: dict[str, Any]
    ) -> list[OperaAnswer]:
        """One search per question; the questions of a batch are searched one after another.

        Raises:
            BadParameterError: options that the search does not know.
            CompositionError: inside `gaze.using` or `gaze.recording`.
            UnsupportedModelError: the last layer has no attention, or the cache cannot be cropped.
        """
        system = options.get("system")
        stop = _stop_criteria(gaze, {name: value for name, value in options.items() if name != "system"})
        pairs = zip(images, questions, strict=True)
        return [self._search(gaze, entry, question, system, stop) for entry, question in pairs]

    @torch.inference_mode()
    def _search(
        self, gaze: Gaze, images: list[Image.Image], question: str, system: str | None, stop: StopCriteria
    ) -> OperaAnswer:
        inputs, attention = gaze.inputs([images], [question], system), LastLayerAttention()
        image = torch.zeros(inputs["input_ids"].shape[1], dtype=torch.bool)
        if images:
            image = gaze.tokens(inputs).mask(Role.IMAGE)[0]
        with gaze.using(attention):
            continuations = Continuations(gaze.model, inputs, "; use OPERA(max_rollbacks=0)")
            attention.active = not self.is_identity
            penalised = None if self.is_identity else attention
            search = BeamSearch(self.rules, stop, continuations, image, penalised)
            found = search.run()
        text = gaze.reader.decode([found.ids])[0]
        return OperaAnswer(text.strip(), found.ids, found.score, tuple(search.rollbacks))


def _stop_criteria(gaze: Gaze, options: dict[str, Any]) -> StopCriteria:
    """When to stop: the given options, else those of the model."""
    hint = "; set OPERA(num_beams=...)"
    stop = read_stop("OPERA", gaze.model, options, "length_penalty", "early_stopping", hint=hint)
    penalty, early = (
        given
        if (given := options.get(name)) is not None
        else getattr(gaze.model.generation_config, name, None)
        for name in ("length_penalty", "early_stopping")
    )
    return StopCriteria(*stop, 1.0 if penalty is None else penalty, early or False)
