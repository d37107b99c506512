"""`wrap`: a handle on a transformers model that asks it, edits its attention and records it."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
from PIL import Image
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary
from transformers import BatchFeature, PreTrainedModel

from regaze.display import Displayed, Summary
from regaze.errors import BadParameterError, InputError, RegazeError, UnsupportedModelError
from regaze.progress import counting
from regaze.toolkit.model import compat
from regaze.toolkit.model.block import Block, Opened
from regaze.toolkit.model.callback import Callback
from regaze.toolkit.model.hook import open_callbacks
from regaze.toolkit.model.release_check import check_release
from regaze.toolkit.model.sampling_choice import with_length, with_sampling_choice
from regaze.toolkit.model.session import Session
from regaze.toolkit.model.vision import vision_tokens
from regaze.toolkit.prompts.conversation import Medium
from regaze.toolkit.prompts.families import Family, MediaInputs, family_of
from regaze.toolkit.prompts.images import ImageLike, open_image
from regaze.toolkit.prompts.pairs import Images, Question, paired
from regaze.toolkit.prompts.prompt_reader import Prompt, PromptReader
from regaze.toolkit.prompts.remote import is_url
from regaze.toolkit.prompts.token_map import PromptTokens, TokenMap
from regaze.toolkit.prompts.video import Clip, Video, open_video
from regaze.toolkit.record.host_copies import to_host
from regaze.toolkit.record.options import RecordArguments, RecordOptions
from regaze.toolkit.record.record import Record
from regaze.toolkit.record.recorder import Recorder

if TYPE_CHECKING:
    from typing_extensions import Unpack

Sizes = list[list[tuple[int, int]]]

#: (width, height) of the images of each prompt, by the tensor of their pixels that `inputs` made of them.
_IMAGE_SIZES: WeakIdKeyDictionary = WeakIdKeyDictionary()
#: Prompts built by `inputs` whose exact roles are kept for `model.generate(**inputs)`.
_MAX_BUILT_PROMPTS = 4096


class MultiPass(Protocol):
    """A method that answers a question with several passes of its own (`interventions.MultiPassMethod`)."""

    def answer(self, gaze: Gaze, images: Any, questions: Any, **options: Any) -> list[Any]: ...


def wrap(
    model: PreTrainedModel, processor: Any = None, *, template_args: Mapping[str, Any] | None = None
) -> Gaze:
    """A handle on `model`; the model itself is not changed.

    Args:
        model: any transformers model whose language part uses the attention interface. For a model wrapped
            by `torch.compile` or PEFT, the handle's `model` is the inner one; run either.
        processor: its processor (or tokenizer for a text model); needed to build prompts and to read roles.
        template_args: variables of its chat template, such as {"enable_thinking": False}, in every prompt.

    Raises:
        UnsupportedModelError: no transformers model. BadParameterError: a variable that the template does not
            have.
    """
    inner = compat.unwrapped(model)
    if not isinstance(inner, PreTrainedModel):
        raise UnsupportedModelError(f"regaze.wrap takes a transformers model, got {type(model).__name__}")
    model = inner
    return Gaze(model, processor, template_args)


class Gaze(Displayed):
    """A wrapped model. Outside `using` and `recording` the model is exactly what it was."""

    def __init__(
        self, model: PreTrainedModel, processor: Any = None, template_args: Mapping[str, Any] | None = None
    ):
        self.model: compat.GenerativeModel = cast("compat.GenerativeModel", model)
        self.processor: Any = processor
        self.family: Family = family_of(model.config)
        #: the part whose attention is edited
        self.host: PreTrainedModel = self.family.hook_target(model)
        self.reader: PromptReader = PromptReader(processor, self.family, template_args)
        self._built: OrderedDict[tuple[int, ...], PromptTokens] = OrderedDict()
        #: Of those, prompts that were built with images of different shapes.
        self._ambiguous: set[tuple[int, ...]] = set()

    def __repr__(self) -> str:
        about = self._about()
        attention = f"{about['layers']} layers x {about['heads']} heads, " if "layers" in about else ""
        return (
            f"Gaze({about['model']}, {about['family']}, {attention}{about['dtype']} on {about['device']}; "
            f"open: {about['open']})"
        )

    def _summary(self) -> Summary:
        return Summary("Gaze", facts=self._about())

    def _about(self) -> dict[str, Any]:
        config = compat.text_config(self.model)
        layers = getattr(config, "num_hidden_layers", None)
        heads = getattr(config, "num_attention_heads", None)
        name = compat.model_name(self.model)
        name = os.path.basename(name) if os.path.isabs(name) else name
        return {
            "model": type(self.model).__name__ + (f" {name}" if name else ""),
            "family": self.family.name,
            **({"layers": layers, "heads": heads} if layers and heads else {}),
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "device": str(self.model.device),
            "processor": type(self.processor).__name__ if self.processor is not None else "none",
            "open": ", ".join(type(each).__name__ for each in open_callbacks(self.host)) or "nothing",
        }

    # Asking -------------------------------------------------------------------------------------------

    def inputs(
        self,
        images: Sequence[Images] | Images,
        questions: Sequence[Question] | Question,
        system: str | None = None,
        *,
        allow_urls: bool = False,
    ) -> BatchFeature:
        """A left-padded batch for `model.generate`, on the model's device.

        Args:
            images: per question an image, several, or None. An image is a PIL image, a path, the bytes of a
                file, an array [H, W, 3] or a tensor [3, H, W] of uint8 or of floats from 0 to 1, or a URL. A
                `Video` is one, too: it has tokens of its own where the model has these, else its frames are
                images.
            questions: B questions (a single one is a batch of one; then `images` may be a single image, too).
                A question is a text, or a list of messages that ends with it: earlier turns, few-shot
                examples, pictures between texts (`toolkit.prompts.conversation`).
            system: a system message for every prompt, where the template has one.
            allow_urls: fetch images whose URLs are given.

        Returns:
            input_ids, attention_mask [B, L] and what the processor adds (pixel_values).

        Raises:
            InputError: unreadable images, no processor, counts that differ.
        """
        batch = self.cpu_inputs(images, questions, system, allow_urls=allow_urls)
        for name, tensor in batch.items():  # Llama 4's processor makes bf16 pixels for whatever model
            if isinstance(tensor, Tensor) and tensor.dtype in (torch.float16, torch.bfloat16):
                batch[name] = tensor.to(self.model.dtype)
        sizes = self._sizes_of(batch)
        batch = batch.to(self.model.device)
        self._note_sizes(batch, sizes)
        return batch

    def cpu_inputs(
        self,
        images: Sequence[Images] | Images,
        questions: Sequence[Question] | Question,
        system: str | None = None,
        *,
        allow_urls: bool = False,
    ) -> BatchFeature:
        """As `inputs`, but left on the CPU as the processor made them; works for a model without weights."""
        entries, asked = paired(images, questions)
        if self.processor is None:
            raise InputError(
                "regaze.wrap was given no processor, so it cannot build prompts; pass it, or build the inputs"
            )
        opened, clips, kinds = self._open(entries, allow_urls)
        prompts = [
            self.reader.render(
                question if isinstance(question, str) else question.shown_as(shown),
                len(images),
                system,
                len(videos),
            )
            for question, images, videos, shown in zip(asked, opened, clips, kinds, strict=True)
        ]
        flat = [clip for each in clips for clip in each]
        batch = self.reader.tokenise([prompt.text for prompt in prompts], opened, flat)
        batch.pop("labels", None)  # PaliGemma's; they are for training
        self._remember(prompts, batch, sum(map(len, opened)))
        self._note_sizes(batch, [[image.size for image in entry] for entry in opened])
        return batch

    def _open(
        self, entries: Sequence[Sequence[Medium]], allow_urls: bool
    ) -> tuple[list[list[Image.Image]], list[list[Clip]], list[list[list[str]]]]:
        """Per question its images, its videos, and of each medium what stands for it in the prompt.

        Where the model has no tokens for videos, these are images.
        """
        images: list[list[Image.Image]] = [[] for _ in entries]
        clips: list[list[Clip]] = [[] for _ in entries]
        kinds: list[list[list[str]]] = [[] for _ in entries]
        for number, entry in enumerate(entries):
            for medium in entry:
                if isinstance(medium, Video) and self.reader.takes_videos:
                    clips[number].append(open_video(medium))
                    kinds[number].append(["video"])
                    continue
                if isinstance(medium, Video):
                    shown = list(open_video(medium).frames)
                else:
                    shown = [open_image(medium, allow_urls)]
                images[number] += shown
                kinds[number].append(["image"] * len(shown))
        return images, clips, kinds

    def ask(
        self,
        images: Sequence[Images] | Images,
        questions: Sequence[Question] | Question,
        *,
        system: str | None = None,
        allow_urls: bool = False,
        batch_size: int = 8,
        progress: Callable[[int], None] | bool | None = None,
        method: MultiPass | None = None,
        **generate_kwargs: Any,
    ) -> list[str]:
        """Answers of the model in the order of the questions; greedy by default.

        Args:
            images, questions, system, allow_urls: as for `inputs`.
            batch_size: questions per batch, left-padded; it does not change the answers.
            progress: called with the number of answers after each batch; True shows a bar.
            method: answers with several passes of its own, about other images too. Its own `ask` also
                returns the intermediate results. Interventions of `using` act in every pass.
            generate_kwargs: passed to `model.generate`; max_new_tokens is 128 by default. An option of
                sampling, such as temperature, turns sampling on, also in a generation_config.

        Raises:
            InputError: as `inputs`. BadParameterError: options that return other than one text per question,
                or that contradict each other.
        """
        entries, asked = paired(images, questions)
        if method is not None:
            if not hasattr(method, "answer"):
                raise BadParameterError(
                    f"{method!r} acts inside forwards: write `with gaze.using(...):` around gaze.ask"
                )
            opened = [
                [open_image(str(i), allow_urls) if is_url(i) else i for i in entry] for entry in entries
            ]
            with counting(progress or False, "answers", len(asked)) as report:
                options = {"system": system, "batch_size": batch_size, "progress": report, **generate_kwargs}
                return [str(answer) for answer in method.answer(self, opened, asked, **options)]
        if batch_size < 1:
            raise BadParameterError(f"batch_size must be at least 1, got {batch_size}")
        if (
            generate_kwargs.get("return_dict_in_generate")
            or generate_kwargs.get("num_return_sequences", 1) > 1
        ):
            raise BadParameterError(
                "ask returns one text per question; for more use model.generate(**gaze.inputs(...))"
            )
        options = with_length(with_sampling_choice(generate_kwargs), 128)
        answers: list[str] = []
        with counting(progress or False, "answers", len(asked)) as report:
            for start in range(0, len(asked), batch_size):
                part = slice(start, start + batch_size)
                inputs = self.inputs(entries[part], asked[part], system, allow_urls=allow_urls)
                options.setdefault("pad_token_id", self.reader.tokenizer.pad_token_id)
                with torch.inference_mode():
                    sequences = self.model.generate(**inputs, **options)
                generated = sequences[:, inputs["input_ids"].shape[1] :]
                self.record_answer(generated)
                answers += [text.strip() for text in self.reader.decode(generated)]
                report(len(generated))
        return answers

    def seen(self, image: ImageLike, *, allow_urls: bool = False) -> Image.Image:
        """The image as the model receives it: resized, without what is cropped away or padding.

        It is what the model receives of an image alone in a prompt; tiles are joined.

        Raises:
            InputError: no image processor, or an image that cannot be read or that the processor refuses.
            UnsupportedModelError: what the model receives is no picture of the image.
        """
        return self.reader.sight.seen(open_image(image, allow_urls))

    # Editing and recording ----------------------------------------------------------------------------

    def using(self, *interventions: Callback, tokens: TokenMap | None = None) -> Block[Gaze]:
        """Apply interventions to every forward of the model inside the block.

        Several interventions act together, in the given order; blocks nest, outer before inner. On exit, also
        after an exception or an interrupt, the model is as before. While a block is open, only the thread
        that opened it may run the model.

        Args:
            interventions: see `regaze.interventions`.
            tokens: roles of the prompts, where regaze cannot read them from the inputs.
        """
        _check_map(tokens)
        for intervention in interventions:
            if not isinstance(intervention, Callback):
                raise BadParameterError(_not_a_callback(intervention))
        if len({id(intervention) for intervention in interventions}) < len(interventions):
            raise BadParameterError("gaze.using was given the same object twice; its state would be mixed up")

        def make() -> Opened:
            check_release(self.model.config.model_type)
            config = compat.text_config(self.model)
            acting = tuple(intervention.for_model(config) for intervention in interventions)
            return Opened(Session(acting, tokens, self._read, self.reader), self)

        return Block(make, self.host, self.model)

    def recording(
        self, *, tokens: TokenMap | None = None, **options: Unpack[RecordArguments]
    ) -> Block[Record]:
        """Record attention statistics of every forward inside the block; `RecordOptions` lists them.

        The record is complete when the block ends.

        Raises:
            RecordingError: a requested statistic cannot be recorded, or was not.
        """
        _check_map(tokens)
        chosen = RecordOptions.for_model(self.model, **options)

        def make() -> Opened:
            check_release(self.model.config.model_type)
            recorder = Recorder(chosen, self.model, self.reader.tokenizer)
            session = Session((recorder,), tokens, self._read, self.reader)
            return Opened(session, recorder.record, recorder.finish)

        return Block(make, self.host, self.model)

    def record_answer(self, output_ids: Tensor) -> None:
        """Give the open recording the answer [B, T] of the generation that has just ended; `ask` does so.

        A record otherwise takes the tokens fed at each step for the answer, which lacks the last one.
        """
        for callback in open_callbacks(self.host):
            if isinstance(callback, Recorder):
                callback.set_answer(output_ids)

    # Roles --------------------------------------------------------------------------------------------

    def tokens(self, inputs: Any) -> TokenMap:
        """Roles of a batch from the processor: input_ids [B, L], and attention_mask where it is padded.

        For a vision model used alone: pixel_values [B, 3, H, W].

        Raises:
            InputError, UnsupportedModelError: the prompts cannot be read.
        """
        needed = "pixel_values" if compat.is_vision_model(self.model) else "input_ids"
        given = inputs.get(needed) if isinstance(inputs, Mapping) else None
        if not isinstance(given, Tensor) or (needed == "input_ids" and given.dim() != 2):
            what = f"{list(given.shape)}" if isinstance(given, Tensor) else type(given).__name__
            raise InputError(
                f"gaze.tokens takes what the processor returned, with {needed} as a tensor of a batch "
                f"(input_ids: [B, L]), got {what}"
            )
        return self._read(inputs, inputs.get("attention_mask"))

    def _read(self, inputs: Mapping[str, Any], attention_mask: Tensor | None) -> TokenMap:
        if compat.is_vision_model(self.model):
            return vision_tokens(self.model, inputs["pixel_values"])
        ids, media = inputs["input_ids"], MediaInputs(inputs)
        if attention_mask is not None and attention_mask.shape == ids.shape:
            ids, attention_mask = to_host([ids, attention_mask.bool().to(ids.dtype)])
        ids = ids.cpu()
        complete = media.has(*self.family.media_inputs)
        visible = _visible(ids, attention_mask)
        samples = []
        for row, shown in zip(ids, visible, strict=True):
            key = tuple(row[shown].tolist())
            sample = self._built.get(key)
            if sample is None:
                sample = self.reader.read(key, media)
            elif self.family.media_inputs and (complete or key in self._ambiguous):  # read the grids
                layout = self.family.read_layout(key, media)
                places = tuple(layout.view), tuple(layout.cell), tuple(layout.views)
                sample = PromptTokens(sample.roles, *places)
            samples.append(sample)
        sizes = self._sizes_of(inputs)
        if sizes is not None and len(sizes) == len(samples):
            placed = self.reader.sight.placed
            samples = [
                replace(sample, views=placed(sample.views, each))
                for sample, each in zip(samples, sizes, strict=True)
            ]
        return TokenMap.from_samples(samples, visible)

    def _sizes_of(self, inputs: Mapping[str, Any]) -> Sizes | None:
        """(width, height) of the images of each prompt, where `inputs` made them from images."""
        pixels = inputs.get(self.family.pixels.name)
        return _IMAGE_SIZES.get(pixels) if isinstance(pixels, Tensor) else None

    def _note_sizes(self, inputs: Mapping[str, Any], sizes: Sizes | None) -> None:
        pixels = inputs.get(self.family.pixels.name)
        if isinstance(pixels, Tensor) and sizes is not None:
            _IMAGE_SIZES[pixels] = sizes

    def _remember(self, prompts: Sequence[Prompt], batch: BatchFeature, images: int) -> None:
        ids, media = batch["input_ids"], MediaInputs(batch, images)
        for prompt, row, shown in zip(prompts, ids, _visible(ids, batch.get("attention_mask")), strict=True):
            key = tuple(row[shown].tolist())
            try:
                sample = self.reader.roles(prompt, key, media)
            except RegazeError:
                return  # asking needs no roles; `tokens` reads the ids again and raises the reason
            if self._built.get(key, sample) != sample:  # the same ids show images of another shape
                self._ambiguous.add(key)
            self._built[key] = sample
            self._built.move_to_end(key)
        while len(self._built) > _MAX_BUILT_PROMPTS:
            self._ambiguous.discard(self._built.popitem(last=False)[0])


def _fetched(medium: Medium, allow_urls: bool) -> Medium:
    """The image behind a URL; what is none as it is."""
    return open_image(str(medium), allow_urls) if is_url(medium) else medium


def _visible(ids: Tensor, attention_mask: Tensor | None) -> Tensor:
    """[B, L] bool on the CPU, False for padding."""
    if attention_mask is None or attention_mask.shape != ids.shape:
        return torch.ones_like(ids, dtype=torch.bool, device="cpu")
    return attention_mask.cpu().bool()


def _check_map(tokens: Any) -> None:
    if tokens is not None and not isinstance(tokens, TokenMap):
        raise BadParameterError(
            f"tokens is a TokenMap, such as TokenMap.from_roles(roles), got {type(tokens).__name__}"
        )


def _not_a_callback(given: Any) -> str:
    """Why an object cannot act inside forwards, and what to do."""
    if isinstance(given, type):
        return f"gaze.using takes interventions such as VAR(), got {given!r}; write it with parentheses"
    if hasattr(given, "answer"):
        return f"{given!r} answers in several passes: write gaze.ask(..., method={type(given).__name__}(...))"
    if hasattr(given, "applied"):
        name = type(given).__name__
        return f"{name} transforms a vision model used alone: write `with {name}(...).applied(vision_model):`"
    return f"gaze.using takes interventions such as VAR(), got {given!r}"
