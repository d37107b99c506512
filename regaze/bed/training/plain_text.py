"""What the bed still is as a language model: perplexity and answers without an image, before and after."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from regaze.bed.scenes import TEXT_FILE
from regaze.reading import parse_json, read_text
from regaze.toolkit.wrap import Gaze

NEW_TOKENS = 32


@torch.inference_mode()
def perplexity(model: PreTrainedModel, tokenizer: Any, passages: Sequence[str]) -> float:
    """exp of the mean loss over all tokens but the first of each passage, without a chat around them."""
    losses: list[Tensor] = []
    for passage in passages:
        ids = tokenizer(passage, return_tensors="pt", add_special_tokens=False)["input_ids"].to(model.device)
        logits = model(input_ids=ids, use_cache=False).logits.float()
        losses.append(torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:], reduction="none"))
    return float(torch.cat(losses).mean().exp())


@torch.inference_mode()
def replies(model: PreTrainedModel, gaze: Gaze, questions: Sequence[str]) -> list[str]:
    """Greedy answers of ``model`` to the prompts that ``gaze`` builds, without an image, one at a time."""
    tokenizer = getattr(gaze.processor, "tokenizer", gaze.processor)
    generate: Callable[..., Tensor] = model.generate  # type: ignore[assignment]
    found = []
    for question in questions:
        inputs = gaze.inputs([None], [question])
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        output = generate(
            input_ids=ids, attention_mask=mask, do_sample=False, max_new_tokens=NEW_TOKENS,
            eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        )  # fmt: skip
        found.append(tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True).strip())
    return found


def plain_text_figures(gaze: Gaze, base: PreTrainedModel | None = None) -> dict[str, Any]:
    """Perplexity and answers of the bed and, if it is given, of the untouched language model."""
    content = parse_json(read_text(TEXT_FILE), TEXT_FILE)
    questions = [entry["text"] for entry in content["questions"]]
    tokenizer = getattr(gaze.processor, "tokenizer", gaze.processor)
    figures: dict[str, Any] = {}
    for name, model in (("before", base), ("after", gaze.model)):
        if model is not None:
            answered = replies(model, gaze, questions)
            figures[name] = {
                "perplexity": perplexity(model, tokenizer, content["passages"]),
                "right": sum(map(accepts, content["questions"], answered)),
                "answers": answered,
            }
    if base is not None:
        pairs = zip(figures["before"]["answers"], figures["after"]["answers"], strict=True)
        figures["same"] = sum(before == after for before, after in pairs)
    return {"questions": questions, **figures}


def accepts(entry: Mapping[str, Any], reply: str) -> bool:
    """Whether one of the accepted words is in a reply."""
    return any(word.lower() in reply.lower() for word in entry["accepted"])
