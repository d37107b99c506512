"""A judge that runs here: a transformers causal language model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from regaze.errors import InputError
from regaze.eval.judges.base import CachedJudge
from regaze.eval.judges.verdicts import Verdicts


@dataclass(frozen=True)
class ModelJudge(CachedJudge):
    """A transformers causal language model with a chat template, decoding greedily.

    Attributes:
        model, tokenizer: as loaded by transformers.
        name: of the model in the results.
    """

    model: Any
    tokenizer: Any
    name: str
    max_new_tokens: int = 512
    verdicts: Verdicts = field(default_factory=Verdicts.in_cache)

    @classmethod
    def load(cls, name: str, **options: Any) -> ModelJudge:
        """By name or path; code from the model's repository is never run.

        Raises:
            InputError: transformers cannot load it, or it has no chat template.
        """
        try:
            tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
            model = AutoModelForCausalLM.from_pretrained(name, trust_remote_code=False).eval()
        except (OSError, ValueError) as error:
            raise InputError(f"judge {name!r} cannot be loaded: {error}") from error
        if not getattr(tokenizer, "chat_template", None):
            raise InputError(f"judge {name!r} has no chat template, so it cannot be asked anything")
        return cls(model, tokenizer, name, **options)

    def _request(self) -> dict[str, Any]:
        return {"model": self.name, "temperature": 0, "max_tokens": self.max_new_tokens}

    def _answer(self, prompts: Sequence[str], store: Callable[[str, str], None]) -> None:
        for prompt in prompts:
            messages = [{"role": "user", "content": prompt}]
            inputs = self.tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
            ).to(self.model.device)
            with torch.inference_mode():
                ids = self.model.generate(**inputs, do_sample=False, max_new_tokens=self.max_new_tokens)
            new = ids[0, inputs["input_ids"].shape[1] :]
            store(prompt, self.tokenizer.decode(new, skip_special_tokens=True).strip())
