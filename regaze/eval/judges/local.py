"""A judge that runs here: a transformers causal language model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from regaze.errors import InputError, RegazeError
from regaze.eval.judges.base import CachedJudge
from regaze.eval.judges.verdicts import Verdicts
from regaze.toolkit.load import default_device, load


@dataclass(frozen=True)
class ModelJudge(CachedJudge):
    """A transformers language model with a chat template, decoding greedily.

    Attributes:
        model, tokenizer: as loaded by transformers.
        name: of the model in the results.
        device: where it runs; it is moved there when it is first asked, after the answers to judge are made.
            None: it stays where it is.
    """

    model: Any
    tokenizer: Any
    name: str
    device: str | None = None
    max_new_tokens: int = 512
    verdicts: Verdicts = field(default_factory=Verdicts.in_cache)

    @classmethod
    def load(cls, name: str, device: str | None = None, **options: Any) -> ModelJudge:
        """By name or path; code from the model's repository is never run.

        Args:
            device: as PyTorch names it, or "auto" to spread the model over all; None: a GPU if there is one.

        Raises:
            InputError: transformers cannot load it, or it has no chat template.
        """
        chosen = device or default_device()
        try:
            model, processor = load(name, device_map="auto" if chosen == "auto" else "cpu")
        except RegazeError as error:
            raise InputError(f"judge {name!r} cannot be loaded: {error}") from error
        tokenizer = getattr(processor, "tokenizer", processor)
        if not getattr(tokenizer, "chat_template", None):
            raise InputError(f"judge {name!r} has no chat template, so it cannot be asked anything")
        return cls(model, tokenizer, name, None if chosen == "auto" else chosen, **options)

    def _request(self) -> dict[str, Any]:
        return {"model": self.name, "temperature": 0, "max_tokens": self.max_new_tokens}

    def _answer(self, prompts: Sequence[str], store: Callable[[str, str], None]) -> None:
        if prompts and self.device is not None:
            self.model.to(self.device)
        for prompt in prompts:
            messages = [{"role": "user", "content": prompt}]
            inputs = self.tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
            ).to(self.model.device)
            with torch.inference_mode():
                ids = self.model.generate(**inputs, do_sample=False, max_new_tokens=self.max_new_tokens)
            new = ids[0, inputs["input_ids"].shape[1] :]
            store(prompt, self.tokenizer.decode(new, skip_special_tokens=True).strip())
