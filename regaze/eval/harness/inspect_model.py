"""Inspect's model provider `regaze`: `inspect eval ... --model regaze/NAME -M method=dola`."""

from __future__ import annotations

import base64
from contextlib import nullcontext
from typing import Any

from inspect_ai.model import ContentImage, ContentText, GenerateConfig, ModelAPI, ModelOutput, modelapi
from PIL import Image

import regaze
from regaze.errors import InputError
from regaze.eval.harness import arguments
from regaze.interventions.base import Intervention, MultiPassMethod
from regaze.toolkit.model.sampling_choice import with_sampling_choice
from regaze.toolkit.prompts.images import open_image

_LOADING = {"dtype", "device_map", "revision", "trust_remote_code", "attn_implementation"}
#: Inspect's names of options of `generate`.
_OPTIONS = {"max_tokens": "max_new_tokens", "temperature": "temperature", "top_p": "top_p", "top_k": "top_k"}


@modelapi("regaze")
class RegazeModel(ModelAPI):
    """A model that `regaze.load` loads, under a method. It answers one question at a time.

    Args:
        model_name: Name or folder of the model, "demo" for the shipped one.
        given: Arguments of `from_pretrained` among `_LOADING`; method=NAME and the method's parameters.

    Raises:
        UnknownMethodError: No such method.
        BadParameterError: An unknown argument, or a wrong value.
    """

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig | None = None,
        **given: Any,
    ) -> None:
        super().__init__(model_name, config=config or GenerateConfig())
        self.method = arguments.pop_method(given)
        arguments.check_unknown(given, _LOADING, self.method)
        self.gaze = regaze.wrap(*regaze.load(model_name, **given))

    def max_connections(self) -> int:
        """One: the model runs in this process."""
        return 1

    async def generate(self, input: Any, tools: Any, tool_choice: Any, config: GenerateConfig) -> ModelOutput:
        """The answer to a single message; greedy unless the temperature is above 0.

        Raises:
            InputError: Several messages, tools, or a part that is neither text nor image.
        """
        if len(input) != 1 or tools:
            raise InputError("regaze answers single questions, without tools and earlier messages")
        images, texts = [], []
        for part in (
            [ContentText(text=input[0].text)] if isinstance(input[0].content, str) else input[0].content
        ):
            if isinstance(part, ContentImage):
                images.append(_open(part.image))
            elif isinstance(part, ContentText):
                texts.append(part.text)
            else:
                raise InputError(f"regaze asks about images and texts; this message holds {part.type}")
        given = {name: getattr(config, theirs) for theirs, name in _OPTIONS.items()}
        options = {name: value for name, value in given.items() if value is not None}
        options.setdefault("max_new_tokens", 1024)
        active = self.gaze.using(self.method) if isinstance(self.method, Intervention) else nullcontext()
        with active:
            (answer,) = self.gaze.ask(
                [images],
                ["\n".join(texts)],
                method=self.method if isinstance(self.method, MultiPassMethod) else None,
                **with_sampling_choice(options),
            )
        return ModelOutput.from_content(self.model_name, answer)


def _open(image: str) -> Image.Image:
    """An image from a file or a data URI, as Inspect passes them."""
    if image.startswith("data:"):
        return open_image(base64.b64decode(image.partition(",")[2]))
    if image.startswith(("http:", "https:")):
        raise InputError(f"{image}: download the image, and give its file")
    return open_image(image)
