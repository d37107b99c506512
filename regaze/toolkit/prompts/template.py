"""Variables of a chat template that a user may set, such as `enable_thinking`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, TemplateSyntaxError, meta, nodes

from regaze.errors import BadParameterError

#: Set by us or by the processor: the conversation and its end, and tokens of the tokenizer.
_RESERVED = re.compile(r"messages|add_generation_prompt|continue_final_message|tools|documents|\w+_token")
#: What transformers gives to templates.
_FUNCTIONS = {"raise_exception", "strftime_now"}
#: transformers' own tags, which mark the answers in a template for training.
_GENERATION_TAGS = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")


def template_variables(processor: Any) -> set[str]:
    """Names that the chat template of a processor or tokenizer takes besides the conversation.

    Empty where there is no template, or one that cannot be parsed.
    """
    template = getattr(processor, "chat_template", None)
    if isinstance(template, Mapping):  # several by name
        template = template.get("default")
    if not isinstance(template, str):
        return set()
    try:
        parsed = Environment(extensions=["jinja2.ext.loopcontrols"]).parse(_GENERATION_TAGS.sub("", template))
    except TemplateSyntaxError:
        return set()
    names = meta.find_undeclared_variables(parsed) - _own_variables(parsed) - _FUNCTIONS
    return {name for name in names if not _RESERVED.fullmatch(name)}


def _own_variables(parsed: nodes.Template) -> set[str]:
    """Names that a template sets itself, except as defaults for what it was not given."""
    assigned, given = set(), set()
    for node in parsed.find_all(nodes.Assign):
        if isinstance(node.target, nodes.Name):
            assigned.add(node.target.name)
            read = [node.node] if isinstance(node.node, nodes.Name) else node.node.find_all(nodes.Name)
            given |= {node.target.name} & {each.name for each in read}
    for test in parsed.find_all(nodes.Test):
        if test.name in ("defined", "undefined") and isinstance(test.node, nodes.Name):
            given.add(test.node.name)
    return assigned - given


def checked_template_args(processor: Any, values: Mapping[str, Any] | None) -> dict[str, Any]:
    """`values` of a chat template's variables.

    A template ignores what it does not know, so that a misspelt name would change nothing.

    Raises:
        BadParameterError: a variable that the template does not have, or a value that JSON does not have.
    """
    known = template_variables(processor) if values else set()
    for name, value in (values or {}).items():
        if name not in known:
            there = f"it has {', '.join(sorted(known))}" if known else "it has none to set"
            raise BadParameterError(f"template argument {name}={value!r}: not of this chat template; {there}")
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise BadParameterError(f"template argument {name}={value!r}: expected a JSON value") from error
    return dict(values or {})
