"""Give a model the very prompt and pictures of a published run, where its processor makes others."""

from __future__ import annotations

import json
from typing import Any

from transformers import LlavaImageProcessorPil

from regaze.errors import InputError
from regaze.eval.reproduction.recipe import IMAGE, QUESTION, Prompt, Recipe


def compose(prompt: Prompt, question: str) -> str:
    """The whole prompt of a recipe with a format, suffix included."""
    assert prompt.format is not None
    before, _, after = prompt.format.partition(QUESTION)
    system = f"{prompt.system} " if prompt.system else ""
    return f"{system}{before}{question}{prompt.suffix or ''}{after}"


def chat_template(prompt: Prompt, placeholder: str = IMAGE, end: str = "") -> str:
    """A chat template that renders each question of a conversation in a recipe's format.

    A system message takes the place of the recipe's; an answer follows its question after a space. A question
    without an image has nothing of the format between `<image>` and `{question}`.

    Args:
        placeholder: what stands for an image in the model's prompts. end: what ends an answer.
    """
    assert prompt.format is not None
    before, _, after = prompt.format.partition(QUESTION)
    head, _, between = before.partition(IMAGE)
    system = f"{prompt.system} " if prompt.system else ""
    parts = "for part in message['content'] if part['type'] =="
    image = f"{{% {parts} 'image' %}}{_text(placeholder + between)}{{% endfor %}}"
    words = f"{{% {parts} 'text' %}}{{{{ part['text'] }}}}{{% endfor %}}"
    return (
        f"{{% if messages[0]['role'] != 'system' %}}{_text(system)}{{% endif %}}"
        "{% for message in messages %}"
        f"{{% if message['role'] == 'system' %}}{words}{_text(' ')}"
        f"{{% elif message['role'] == 'assistant' %}}{_text(' ')}{words}{_text(end)}"
        f"{{% else %}}{_text(head)}{image}{words}{_text(after)}{{% endif %}}"
        "{% endfor %}"
    )


def _text(text: str) -> str:
    """Literal text; escaped, because templates of transformers trim newlines."""
    return f"{{{{ {json.dumps(text)} }}}}"


def prepare(gaze: Any, recipe: Recipe) -> None:
    """Let a wrapped model make the prompts of a recipe, and its squares of pictures.

    Raises:
        InputError: pictures to be padded or cropped, and another image processor than CLIP's or LLaVA's.
    """
    if recipe.prompt.format is not None:
        end = gaze.reader.tokenizer.eos_token or ""
        gaze.processor.chat_template = chat_template(recipe.prompt, gaze.reader.image_placeholder, end)
    if recipe.model.image != "own":
        given = getattr(gaze.processor, "image_processor", None)
        gaze.processor.image_processor = _squaring(recipe, given)


def _squaring(recipe: Recipe, given: Any) -> Any:
    """LLaVA's image processor with the settings of the given one; like CLIP's, but that it can pad."""
    settings = {} if given is None else given.to_dict()
    if not settings.get("do_center_crop"):
        raise InputError(
            f"{recipe.recipe}: image: {recipe.model.image} needs an image processor such as CLIP's, "
            f"and the one of {recipe.model.id} is {type(given).__name__}"
        )
    settings["do_pad"] = recipe.model.image == "pad"
    return LlavaImageProcessorPil.from_dict(settings)
