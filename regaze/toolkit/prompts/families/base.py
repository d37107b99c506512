"""What regaze must know of a model family: where its image tokens sit and what each of them shows.

A family reads one sample at a time. Most put the tokens of an image next to each other, so that `split`
divides a run of image tokens into views; where the ids themselves tell the grid (row ends, tile headers), a
family overrides `lay_out`. What they do not tell comes from the processor's other outputs, through `Media`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from regaze.errors import InputError, UnsupportedModelError
from regaze.toolkit.prompts.token_map import WHOLE, Shares, TokenMap, View

if TYPE_CHECKING:
    from transformers import BatchFeature, PreTrainedModel


@dataclass(frozen=True)
class Piece:
    """Neighbouring image tokens that make up one view.

    Attributes:
        grid: (rows, columns); (0, 0) for tokens without places.
        cells: row-major cell of each of its tokens, in their order; -1: no place (class token, row end).
        box: see `View`.
        continues: whether it shows the image of the piece before it; otherwise the next image.
        frame: see `View`.
    """

    grid: tuple[int, int]
    cells: Sequence[int]
    box: Shares | None = WHOLE
    continues: bool = False
    frame: int | None = None

    @classmethod
    def full(cls, rows: int, columns: int, **changes: Any) -> Piece:
        """A row-major grid without further tokens."""
        return cls((rows, columns), range(rows * columns), **changes)

    @classmethod
    def placeless(cls, count: int, **changes: Any) -> Piece:
        """Tokens that show the image as a whole: the queries of a Q-Former or resampler."""
        return cls((0, 0), [-1] * count, **changes)


@dataclass
class Layout:
    """What the tokens of one sample show; see `Sample`."""

    view: list[int]
    cell: list[int]
    views: list[View] = field(default_factory=list)

    @classmethod
    def of(cls, length: int) -> Layout:
        """Of `length` tokens that show nothing yet."""
        return cls([-1] * length, [-1] * length)

    def add(self, piece: Piece, places: Sequence[int]) -> None:
        """One more view, whose tokens are at `places`. Raises InputError where these are not as many."""
        if len(places) != len(piece.cells):
            raise InputError(
                f"{len(places)} neighbouring image tokens are no whole image, which has {len(piece.cells)}"
            )
        image = (self.views[-1].image if self.views else -1) + (not (piece.continues and self.views))
        for place, cell in zip(places, piece.cells, strict=True):
            self.view[place], self.cell[place] = len(self.views), cell
        self.views.append(View(piece.grid, image, piece.box, piece.frame))


class Media:
    """What a processor said of each image of a batch, handed out in the order of the prompts.

    Args:
        inputs: its outputs, such as "image_grid_thw" [images, 3] or "image_sizes" [images, 2].
    """

    def __init__(self, inputs: Mapping[str, Any]):
        self._inputs, self._taken = inputs, Counter[str]()

    def has(self, *names: str) -> bool:
        """Whether all of these are there."""
        return all(self._inputs.get(name) is not None for name in names)

    def take(self, name: str) -> Any:
        """The entry of the next image, as a number or list.

        Raises:
            InputError: the inputs do not have it, or not for as many images as the prompts show.
        """
        (entry,) = self.take_several(name, 1)
        return entry.tolist() if hasattr(entry, "tolist") else entry

    def take_several(self, name: str, count: int) -> Any:
        """The next `count` entries as they are: a slice of a tensor or list. Raises as `take`."""
        entries = self._inputs.get(name)
        if entries is None:
            raise InputError(
                f"where this model's image tokens sit is told by {name!r}, which its processor gives beside "
                "input_ids; pass the model (or gaze.tokens) all that the processor returned"
            )
        start = self._taken[name]
        if start + count > len(entries):
            raise InputError(f"{name!r} is of {len(entries)} images, but the prompts show more")
        self._taken[name] += count
        return entries[start : start + count]


class Family:
    """A text-only model: no image tokens. Vision-language families override what differs.

    Attributes:
        name: shown in messages and tables.
        model_types: `config.model_type` values that belong to the family.
        media: processor outputs that `lay_out` takes.
        nested_images: whether the processor takes a list of images per prompt, rather than one list.
        padding_side: where prompts are padded; an encoder that counts positions from its first token wants
            "right".
        guessing: whether the layout is a guess.
    """

    name: ClassVar[str] = "text"
    model_types: ClassVar[tuple[str, ...]] = ()
    media: ClassVar[tuple[str, ...]] = ()
    nested_images: ClassVar[bool] = False
    padding_side: ClassVar[str] = "left"
    guessing: ClassVar[bool] = False

    def __init__(self, config: Any):
        self.config = config

    @classmethod
    def serves(cls, config: Any) -> bool:
        """Whether a model of this configuration belongs to the family."""
        return config.model_type in cls.model_types

    @property
    def image_token_ids(self) -> tuple[int, ...]:
        """Ids, in the model's final `input_ids`, of tokens that carry an image's content."""
        return ()

    @property
    def image_token_id(self) -> int | None:
        """The first of them; None without images."""
        return next(iter(self.image_token_ids), None)

    def shows_image(self, ids: Sequence[int]) -> list[bool]:
        """Which tokens of a prompt carry an image's content: those of `image_token_ids`.

        A family overrides it where image tokens have ids that mean other things elsewhere.
        """
        wanted = frozenset(self.image_token_ids)
        return [token in wanted for token in ids]

    def lay_out(self, ids: Sequence[int], media: Media) -> Layout:
        """Where the image tokens of one sample, without padding, sit and what each shows.

        Raises:
            InputError: the ids are no whole images of this family, or `media` lacks something.
        """
        layout = Layout.of(len(ids))
        for start, count in runs(self.shows_image(ids)):
            position = start
            for piece in self.split(count, media):
                layout.add(piece, range(position, position + len(piece.cells)))
                position += len(piece.cells)
        return layout

    def split(self, count: int, media: Media) -> list[Piece]:
        """Divide a run of `count` neighbouring image tokens into views; they cover all of it.

        Raises:
            InputError: the run is not a whole number of images.
        """
        raise InputError(f"a {self.name} model has no image tokens")

    def host(self, model: PreTrainedModel) -> PreTrainedModel:
        """The part of `model` whose forward runs once per step, where regaze takes hold.

        It is the model itself, unless its `generate` calls that of a part.
        """
        return model

    def cross_tokens(self, inputs: Mapping[str, Any], batch: int, keys: int) -> TokenMap:
        """What each key of the cross-attention layers shows, for models that have such layers.

        Args:
            inputs: the arguments of the forward. batch, keys: of the keys, [batch, keys].

        Raises:
            UnsupportedModelError: regaze does not know.
        """
        raise UnsupportedModelError(
            f"regaze does not know what the {keys} keys of the cross-attention layers of "
            f"{self.config.model_type!r} show; add a family (CONTRIBUTING.md)"
        )

    def corrected(self, inputs: BatchFeature) -> BatchFeature:
        """What the processor made of a batch, where that answers otherwise than each prompt alone."""
        return inputs

    def prompt(self, question: str, images: int, system: str | None) -> str:
        """The prompt for processors without a chat template, as the family's authors write it."""
        if images or system:
            raise InputError(
                "this processor has no chat template to build a prompt with an image or system text"
            )
        return question


def runs(flags: Sequence[bool]) -> list[tuple[int, int]]:
    """(start, length) of each run of True."""
    found: list[tuple[int, int]] = []
    for i, flag in enumerate(flags):
        if flag and i and flags[i - 1]:
            found[-1] = (found[-1][0], found[-1][1] + 1)
        elif flag:
            found.append((i, 1))
    return found


def fill(layout: Layout, places: Sequence[int], images: Iterator[list[Piece]]) -> None:
    """Lay out images, each of them given as its pieces, until they take up all of `places`.

    Raises:
        InputError: the last image does not end where the places do.
    """
    start = 0
    while start < len(places):
        for piece in next(images):
            end = start + len(piece.cells)
            if end > len(places):
                raise InputError(
                    f"the prompt has {len(places)} tokens where its images, of the sizes that the processor "
                    "tells, take more"
                )
            layout.add(piece, places[start:end])
            start = end


def whole_images(count: int, per_image: int, what: str) -> int:
    """How many images of `per_image` tokens a run of `count` holds. Raises InputError for a rest."""
    if count % per_image:
        raise InputError(
            f"{count} neighbouring image tokens are not a whole number of images of {per_image} tokens "
            f"({what})"
        )
    return count // per_image
