"""Which methods run inside an engine, and why the others do not (the table of docs/serving.md)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from regaze.toolkit.model.callback import Callback, overrides, prompt_needs
from regaze.toolkit.model.context import Context

#: The built-in methods that run, and what is particular about each.
RUNS: dict[str, str] = {
    "adhh": "",
    "attnreal": "",
    "eah": "needs prompts in one piece",
    "farsight": "takes no cached prefixes",
    "gift": "takes no cached prefixes; its saliency layers before the enhanced ones",
    "hgai": "",
    "knockout": "",
    "mma": "needs prompts in one piece",
    "moa": "takes no cached prefixes",
    "pai": "with gamma=1",
    "sparc": "",
    "spin": "",
    "vaf": "takes no cached prefixes",
    "var": "takes no cached prefixes; without torch.compile",
}
#: Parameters that name files, of the methods that run: nothing that a sender may choose.
FILES: dict[str, tuple[str, ...]] = {"moa": ("plan",)}
#: What an engine lacks, by the callback's method that needs it.
LACKS: dict[str, str] = {
    "branches": "it compares with a second context of each prompt",
    "leaving": "it takes tokens of the prompt away between layers",
    "edit_keys": "it edits keys in every forward",
    "edit_mlp": "it edits outputs of MLPs",
    "edit_attention_output": "it edits what layers add to the residual stream",
    "edit_vision_mlp": "it edits the vision tower",
    "on_attention": "it reads queries and keys of all rows",
    "combine_logits": "it combines logits",
    "on_chosen": "it follows which tokens are chosen",
}
_PASSES = "it answers in several passes: use it at the client"
#: The built-in methods that do not run, and why.
REFUSED: dict[str, str] = {
    **dict.fromkeys(
        ("agla", "avisc", "cai", "causalmm", "damro", "icd", "m3id", "marine", "paint", "ritual"),
        LACKS["branches"],
    ),
    **dict.fromkeys(("sid", "vcd", "vhr", "vista"), LACKS["branches"]),
    **dict.fromkeys(("fastv", "pyramiddrop", "sparsevlm"), LACKS["leaving"]),
    **dict.fromkeys(("memvr", "nullu", "vti"), LACKS["edit_mlp"]),
    **dict.fromkeys(("deco", "dola", "flb"), LACKS["combine_logits"]),
    **dict.fromkeys(("carve", "degf", "halc", "ilvad", "opera"), _PASSES),
    "ict": LACKS["edit_attention_output"],
    "only": LACKS["on_attention"],
    "pti": "it adds vectors to keys and values in the cache",
}


def lacking(callbacks: Sequence[Callback]) -> str | None:
    """Why these callbacks cannot act in an engine, from what they override; None: nothing is known."""
    for callback in callbacks:
        inactive = callback.inactive
        for name, reason in LACKS.items():
            if name not in inactive and overrides(callback, name):
                return f"{_name(callback)}: {reason}"
        if _name(callback) in REFUSED:
            return f"{_name(callback)}: {REFUSED[_name(callback)]}"
    return None


def requested(context: Context) -> str | None:
    """Why what the callbacks of a context requested in `prepare` is not there; None: nothing."""
    if context.replay_requested:
        return "runs the prompt's last row a second time"
    if context.captured_layers:
        return "reads hidden states of every forward"
    return None


def needed_arguments(method: Any) -> dict[str, Any]:
    """Arguments of an engine without which it would refuse a method; None: the plain model."""
    found: dict[str, Any] = {}
    if isinstance(method, Callback):
        if prompt_needs(method) == "whole":
            found["enable_chunked_prefill"] = False
        if method.needs_hidden_states:
            found["enforce_eager"] = True
    return found


def _name(callback: Callback) -> str:
    return str(getattr(callback, "name", "") or type(callback).__name__)


def table() -> str:
    """The table of docs/serving.md, a row per built-in method."""
    runs = {name: f"runs; {note}" if note else "runs" for name, note in RUNS.items()}
    rows = sorted({**runs, **{name: f"refused: {reason}" for name, reason in REFUSED.items()}}.items())
    return "".join(f"| `{name}` | {text} |\n" for name, text in rows)
