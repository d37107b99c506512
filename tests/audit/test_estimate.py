"""How many answers an audit needs."""

from __future__ import annotations

from pathlib import Path

from regaze.audit.estimate import number_of_prompts
from regaze.eval.benchmarks.common.base import Item
from regaze.eval.benchmarks.plain_text import Perplexity
from regaze.eval.benchmarks.pope.benchmark import Pope
from regaze.eval.run.tasks import EvalTask


def test_a_prompt_is_asked_once_and_a_passage_is_a_prompt():
    items = [Item(split, split, Path("a.png"), "Is there a cup?", "yes") for split in ("random", "popular")]
    assert number_of_prompts(EvalTask(Pope(tuple(items)))) == 1
    passages = [Item(name, "text", None, "Write.", name, continuation=name) for name in ("one", "two")]
    assert number_of_prompts(EvalTask(Perplexity(tuple(passages)))) == 2
