"""Base classes of methods: frozen hyper-parameters that act inside forwards or run a model several times."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from PIL import Image

from regaze.errors import BadParameterError, InputError, RegazeError, UnknownParameterError
from regaze.interventions.facts import Facts
from regaze.interventions.parameters import parameters_of, to_plain
from regaze.names import suggestion
from regaze.toolkit.model.callback import Callback
from regaze.toolkit.prompts.images import ImageLike, open_image
from regaze.toolkit.prompts.pairs import Images, paired
from regaze.toolkit.prompts.video import Video
from regaze.toolkit.wrap import Gaze

if TYPE_CHECKING:
    from typing_extensions import Self

#: Key of `to_dict` for the hash of a method's file: answers of other code are other answers.
_FILE = "file-sha256"


@dataclass(frozen=True)
class Method:
    """A frozen dataclass whose fields are the hyper-parameters of a paper, with a name and a JSON form.

    A field's annotation says which values it allows, see `regaze.interventions.parameters`.

    Class attributes:
        name: registered name, as used on the command line.
        summary: one line on what it does. source: the paper.
        edits: what is changed, and when. cost: forwards per token, and memory. facts: these and what it
            needs as data, for its default parameters; every built-in method has them.
        release: licence and known defects of the released code, and what is done here instead.
        file_sha256: of a method from a file (`--method file.py:Class`) the hash of that file.
    """

    name: ClassVar[str] = ""
    summary: ClassVar[str] = ""
    source: ClassVar[str] = ""
    edits: ClassVar[str] = ""
    cost: ClassVar[str] = ""
    facts: ClassVar[Facts | None] = None
    release: ClassVar[str] = ""
    file_sha256: ClassVar[str] = ""

    def __post_init__(self) -> None:
        """Check each parameter against its annotation, and make tuples of other collections.

        A subclass that checks how parameters fit together overrides this and calls it first.

        Raises:
            BadParameterError: names the parameter, what is allowed and what was given.
        """
        cls: Any = type(self)
        for parameter in parameters_of(cls):
            value = parameter.checked(getattr(self, parameter.name), self.name)
            object.__setattr__(self, parameter.name, value)

    @property
    def is_identity(self) -> bool:
        """Whether these parameters leave every model unchanged, bit for bit."""
        return False

    @property
    def lacks(self) -> str:
        """What has to be given before the method can act, and how; "" where nothing has."""
        return ""

    @property
    def shares_prefix(self) -> Literal["", "edited", "plain"]:
        """Whether prompts may share the key-value cache of a common prefix, and whose.

        "edited": the edit of a token depends on no later token and no other row of the batch, so that the
        edited model's cache can be shared. "plain": it edits and measures only the last row of the prompt, so
        that the plain model's cache can be shared. "": neither.
        """
        return ""

    def controls(self) -> Sequence[Method]:
        """Its own controls: trivial stand-ins that it has to beat (`regaze.interventions.controls`).

        Random ones have a `seed`; `dataclasses.replace(control, seed=1)` is another draw.
        """
        return ()

    def to_dict(self) -> dict[str, Any]:
        """JSON form: the method's name, the hash of the file that it is from, if any, and its parameters.

        It holds only the name of a function, which `from_dict` cannot restore.
        """
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        code = {_FILE: self.file_sha256} if self.file_sha256 else {}
        return {"method": self.name, **code, **{name: _named(value) for name, value in values.items()}}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Inverse of `to_dict`; lists become tuples. Raises UnknownParameterError, BadParameterError."""
        values = {key: to_plain(value) for key, value in data.items() if key not in ("method", _FILE)}
        known = [f.name for f in fields(cls)]
        for key in values:
            if key not in known:
                raise UnknownParameterError(
                    f"{cls.name!r} has no parameter {key!r}{suggestion(key, known, 'it has', 'none')}"
                )
        try:
            return cls(**values)
        except RegazeError:
            raise
        except (TypeError, ValueError) as error:
            raise BadParameterError(f"{cls.name!r}: {error}") from None


def _named(value: Any) -> Any:
    """A function by its name, anything else as it is."""
    if not callable(value):
        return value
    return f"<{getattr(value, '__qualname__', type(value).__qualname__)}>"


@dataclass(frozen=True)
class Intervention(Method, Callback):
    """Base of methods that act inside the model's forwards; `gaze.using` takes them.

    An intervention keeps no state: what it computes from a prompt goes into `context.state(self)`, which
    lives as long as that generation. No result therefore depends on the sample before.
    """


@dataclass(frozen=True)
class MultiPassMethod(Method):
    """Base of methods that run the model several times per question, on other images or prompts.

    They leave the forwards alone, so that interventions may be active around them. Use them with
    `gaze.ask(..., method=...)`, or `answer` for their full results.
    """

    def answer(
        self,
        gaze: Gaze,
        images: Sequence[Images] | Images,
        questions: Sequence[str] | str,
        *,
        system: str | None = None,
        batch_size: int = 8,
        progress: Callable[[int], None] | None = None,
        **generate_kwargs: Any,
    ) -> list[Any]:
        """One result per question, in the same order; `str` of a result is the answer.

        Arguments and errors as for `Gaze.ask`.
        """
        entries, asked = paired(images, questions)
        texts = [question for question in asked if isinstance(question, str)]
        if len(texts) < len(asked):
            raise InputError(f"{self.name} asks questions that are texts: give it no messages")
        if batch_size < 1:
            raise BadParameterError(f"batch_size must be at least 1, got {batch_size}")
        options, results = {"system": system, **generate_kwargs}, []
        for start in range(0, len(texts), batch_size):
            part = slice(start, start + batch_size)
            opened = [[self._open(image) for image in entry] for entry in entries[part]]
            results += self.answer_batch(gaze, opened, texts[part], options)
            if progress is not None:
                progress(len(opened))
        return results

    def _open(self, image: ImageLike | Video) -> Image.Image:
        if isinstance(image, Video):
            raise InputError(
                f"{type(self).__name__} asks about images in several passes, and takes no videos; give the "
                "frames as images"
            )
        return open_image(image)

    def answer_batch(
        self, gaze: Gaze, images: list[list[Image.Image]], questions: list[str], options: dict[str, Any]
    ) -> list[Any]:
        """The results for one batch: the images of each question, and options for `gaze.ask`."""
        raise NotImplementedError
