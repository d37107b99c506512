"""A logits processor of vLLM that lets a request give no answer but one, whose log-probability is wanted.

Log-probabilities are those of the logits before processors, so an answer that is forced has the likelihood
that the model, edited as in any answer, gives it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor

#: The key of `extra_args` with the ids of the answer's tokens.
FORCED = "regaze_forced"


class ForcedAnswer(AdapterLogitsProcessor):
    """Rules out every token but the next one of the wanted answer."""

    def is_argmax_invariant(self) -> bool:
        return False

    def new_req_logits_processor(self, params: Any) -> Callable[[Sequence[int], Tensor], Tensor] | None:
        wanted: Sequence[int] | None = (params.extra_args or {}).get(FORCED)
        if not wanted:
            return None

        def force(answer: Sequence[int], logits: Tensor) -> Tensor:
            """`answer`: what there is of it so far; an engine that schedules ahead knows only how much."""
            if len(answer) < len(wanted):
                logits.fill_(-float("inf"))
                logits[wanted[len(answer)]] = 0.0  # also where the method has ruled it out
            return logits

        return force
