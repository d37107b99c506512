"""Which methods run inside an engine, and why the others do not (the table of docs/serving.md)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from regaze.serving.common.contexts import has_second
from regaze.toolkit.model.callback import Callback, overrides, prompt_needs
from regaze.toolkit.model.context import Context

#: The built-in methods that run, and what is particular about each.
RUNS: dict[str, str] = {
    "adhh": "",
    "attnreal": "",
    "cai": "needs prompts in one piece; without torch.compile",
    "causalmm": "with where='language'",
    "deco": "without torch.compile",
    "dola": "without torch.compile",
    "eah": "needs prompts in one piece",
    "farsight": "takes no cached prefixes",
    "flb": "",
    "gift": "takes no cached prefixes; its saliency layers before the enhanced ones",
    "hgai": "",
    "icd": "",
    "knockout": "",
    "m3id": "",
    "mma": "needs prompts in one piece",
    "moa": "takes no cached prefixes",
    "pai": "",
    "ritual": "",
    "sid": "needs prompts in one piece",
    "sparc": "",
    "spin": "",
    "vaf": "takes no cached prefixes",
    "var": "without torch.compile",
    "vcd": "",
    "vista": "with strength=0; without torch.compile",
}
#: Parameters that name files, of the methods that run: nothing that a sender may choose.
FILES: dict[str, tuple[str, ...]] = {"moa": ("plan",)}
#: What an engine lacks, by the callback's method that needs it.
LACKS: dict[str, str] = {
    "leaving": "it takes tokens of the prompt away between layers",
    "edit_keys": "it edits keys in every forward",
    "edit_mlp": "it edits outputs of MLPs",
    "edit_attention_output": "it edits what layers add to the residual stream",
    "edit_vision_mlp": "it edits the vision tower",
    "on_attention": "it reads queries and keys of all rows",
    "on_chosen": "it follows which tokens are chosen",
}
_TOWER = "it reads the attention of the vision tower"
_PASSES = "it answers in several passes: use it at the client"
#: The built-in methods that do not run, and why.
REFUSED: dict[str, str] = {
    **dict.fromkeys(("damro", "paint"), _TOWER),
    **dict.fromkeys(("fastv", "pyramiddrop", "sparsevlm"), LACKS["leaving"]),
    **dict.fromkeys(("memvr", "nullu", "vti"), LACKS["edit_mlp"]),
    **dict.fromkeys(("carve", "degf", "halc", "ilvad", "opera"), _PASSES),
    "agla": "it asks a model beside the engine which part of the image matters",
    "avisc": "it runs the prompt a further time, to choose tokens",
    "ict": LACKS["edit_attention_output"],
    "marine": "it runs a detector of objects beside the engine",
    "only": LACKS["on_attention"],
    "pti": "it adds vectors to keys and values in the cache",
    "vhr": "it runs the prompt a further time, to choose heads",
}


#: Values of parameters without which a method reads the vision tower.
_ONLY = {"causalmm": {"where": "language"}}


def lacking(callbacks: Sequence[Callback]) -> str | None:
    """Why these callbacks cannot act in an engine, from what they override; None: nothing is known."""
    for callback in callbacks:
        inactive = callback.inactive
        for name, reason in LACKS.items():
            if name not in inactive and overrides(callback, name):
                return f"{_name(callback)}: {reason}"
        if _name(callback) in REFUSED:
            return f"{_name(callback)}: {REFUSED[_name(callback)]}"
        for parameter, value in _ONLY.get(_name(callback), {}).items():
            if (found := getattr(callback, parameter)) != value:
                return f"{_name(callback)}: with {parameter}={found!r} {_TOWER}"
    return None


def requested(context: Context) -> str | None:
    """Why what the callbacks of a context requested in `prepare` is not there; None: nothing."""
    if context.replay_requested:
        return "runs the prompt's last row a second time"
    if context.num_layers in context.captured_layers:
        return "reads what leaves the last layer"
    return None


def needed_arguments(method: Any) -> dict[str, Any]:
    """Arguments of an engine without which it would refuse a method; None: the plain model."""
    found: dict[str, Any] = {}
    if isinstance(method, Callback):
        if prompt_needs(method) == "whole":
            found["enable_chunked_prefill"] = False
        facts = getattr(method, "facts", None)
        if method.needs_hidden_states or (facts is not None and "layer logits" in facts.needs):
            found["enforce_eager"] = True
        if has_second(method):
            found["async_scheduling"] = False
    return found


def _name(callback: Callback) -> str:
    return str(getattr(callback, "name", "") or type(callback).__name__)


def table() -> str:
    """The table of docs/serving.md, a row per built-in method."""
    runs = {name: f"runs; {note}" if note else "runs" for name, note in RUNS.items()}
    rows = sorted({**runs, **{name: f"refused: {reason}" for name, reason in REFUSED.items()}}.items())
    return "".join(f"| `{name}` | {text} |\n" for name, text in rows)
