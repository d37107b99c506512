"""`Family`: where the image tokens of a model family are, and what each of them shows.

A family reads one sample at a time. In most families the tokens of an image are contiguous: `split_run`
divides a run of image tokens into views. Where the ids themselves give the grid (row ends, names of tiles), a
family overrides `read_layout`. `MediaInputs` has the processor's other outputs, for what the ids do not give.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from regaze.errors import InputError, UnsupportedModelError
from regaze.toolkit.prompts.picture import WHOLE, Shares
from regaze.toolkit.prompts.pixels import PixelLayout, Tiles
from regaze.toolkit.prompts.token_map import TokenMap, View

if TYPE_CHECKING:
    from transformers import BatchFeature, PreTrainedModel


@dataclass(frozen=True)
class ViewTokens:
    """The tokens of one view, in their order.

    Attributes:
        grid: (rows, columns); (0, 0) for tokens without a place.
        cells: row-major cell of each token; -1: no place (class token, row end).
        box: see `View`.
        same_image: whether the view shows the image of the view before it; otherwise it shows the next one.
        frame: see `View`.
    """

    grid: tuple[int, int]
    cells: Sequence[int]
    box: Shares | None = WHOLE
    same_image: bool = False
    frame: int | None = None

    @classmethod
    def row_major(cls, rows: int, columns: int, **options: Any) -> ViewTokens:
        """A row-major grid and no other tokens."""
        return cls((rows, columns), range(rows * columns), **options)

    @classmethod
    def unplaced(cls, count: int, **options: Any) -> ViewTokens:
        """Tokens that each show all of the image: the queries of a Q-Former or resampler."""
        return cls((0, 0), [-1] * count, **options)


@dataclass
class Layout:
    """What the tokens of one sample show; fields as in `PromptTokens`."""

    view: list[int]
    cell: list[int]
    views: list[View] = field(default_factory=list)

    @classmethod
    def empty(cls, length: int) -> Layout:
        """The layout of `length` tokens without an image."""
        return cls([-1] * length, [-1] * length)

    def add(self, tokens: ViewTokens, positions: Sequence[int]) -> None:
        """Add a view with its tokens at `positions`. Raises InputError where their numbers differ."""
        if len(positions) != len(tokens.cells):
            raise InputError(
                f"{len(positions)} neighbouring image tokens are no whole image, which has "
                f"{len(tokens.cells)}"
            )
        image = self.views[-1].image if self.views else -1
        if not (tokens.same_image and self.views):
            image += 1
        for position, cell in zip(positions, tokens.cells, strict=True):
            self.view[position], self.cell[position] = len(self.views), cell
        self.views.append(View(tokens.grid, image, tokens.box, tokens.frame))

    def add_images(self, positions: Sequence[int], images: Iterator[list[ViewTokens]]) -> None:
        """Add images, each given as its views, until they take up all of `positions`.

        Raises:
            InputError: the last image does not end where the positions do.
        """
        start = 0
        while start < len(positions):
            for tokens in next(images):
                end = start + len(tokens.cells)
                if end > len(positions):
                    raise InputError(
                        f"the prompt has {len(positions)} tokens where its images, of the sizes that the "
                        "processor gives, take more"
                    )
                self.add(tokens, positions[start:end])
                start = end


class MediaInputs:
    """Outputs of a processor that have one entry per image of a batch, read in the order of the prompts.

    Args:
        inputs: all its outputs, such as "image_grid_thw" [images, 3] or "image_sizes" [images, 2].
        images: how many images the prompts of the batch have, where that is known.
    """

    def __init__(self, inputs: Mapping[str, Any], images: int | None = None):
        self._inputs, self._position = inputs, Counter[str]()
        self.images = images

    def has(self, *names: str) -> bool:
        """Whether the processor gave all of these."""
        return all(self._inputs.get(name) is not None for name in names)

    def get(self, name: str) -> Any:
        """All entries of an output, of the whole batch; None where the processor did not give it."""
        return self._inputs.get(name)

    def next(self, name: str) -> Any:
        """The entry of the next image, as a number or list.

        Raises:
            InputError: the inputs do not have it, or not for as many images as the prompts show.
        """
        entries = self._inputs.get(name)
        if isinstance(entries, Tensor) and entries.device.type != "cpu":  # one copy for all images
            self._inputs = {**self._inputs, name: entries.cpu()}
        (entry,) = self.next_entries(name, 1)
        return entry.tolist() if hasattr(entry, "tolist") else entry

    def next_entries(self, name: str, count: int) -> Any:
        """The next `count` entries as they are: a slice of a tensor or list. Raises as `next`."""
        entries = self._inputs.get(name)
        if entries is None:
            raise InputError(
                f"the places of this model's image tokens depend on {name!r}, which its processor gives "
                "beside input_ids; pass the model (or gaze.tokens) all that the processor returned"
            )
        start = self._position[name]
        if start + count > len(entries):
            raise InputError(f"{name!r} is of {len(entries)} images, but the prompts show more")
        self._position[name] += count
        return entries[start : start + count]


class Family:
    """A text-only model: no image tokens. Vision-language families override what differs.

    Attributes:
        name: in messages and tables.
        model_types: the `config.model_type` values of the family.
        media_inputs: names of the processor outputs that `read_layout` reads.
        pixels: how the pixels of images lie in the processor's outputs.
        measures_boxes: whether the processor crops or pads images by amounts that its outputs do not tell, so
            that boxes are measured (`Sight`).
        nested_images: whether the processor takes a list of images per prompt, rather than one flat list.
        padding_side: where prompts are padded; "right" for an encoder that counts positions from the first
            token.
        is_guess: whether the layout is a guess.
    """

    name: ClassVar[str] = "text"
    model_types: ClassVar[tuple[str, ...]] = ()
    media_inputs: ClassVar[tuple[str, ...]] = ()
    pixels: ClassVar[PixelLayout] = Tiles()
    measures_boxes: ClassVar[bool] = False
    nested_images: ClassVar[bool] = False
    padding_side: ClassVar[str] = "left"
    is_guess: ClassVar[bool] = False

    def __init__(self, config: Any):
        self.config = config

    @classmethod
    def matches(cls, config: Any) -> bool:
        """Whether a model of this configuration belongs to the family."""
        return config.model_type in cls.model_types

    @property
    def image_token_ids(self) -> tuple[int, ...]:
        """Ids, in the model's final `input_ids`, of tokens that carry an image's content."""
        return ()

    @property
    def image_token_id(self) -> int | None:
        """The first of `image_token_ids`; None without images."""
        return next(iter(self.image_token_ids), None)

    def image_mask(self, ids: Sequence[int]) -> list[bool]:
        """Which tokens of a prompt carry an image's content: those of `image_token_ids`.

        A family overrides it where image tokens have ids that mean other things elsewhere.
        """
        image = frozenset(self.image_token_ids)
        return [token in image for token in ids]

    def image_runs(self, ids: Sequence[int]) -> list[tuple[int, int]]:
        """(start, length) of each contiguous run of image tokens."""
        return runs(self.image_mask(ids))

    def read_layout(self, ids: Sequence[int], media: MediaInputs) -> Layout:
        """What the tokens of one sample, without padding, show.

        Raises:
            InputError: the ids are no whole images of this family, or `media` lacks something.
        """
        layout = Layout.empty(len(ids))
        for start, count in self.image_runs(ids):
            layout.add_images(range(start, start + count), iter([self.split_run(count, media)]))
        return layout

    def split_run(self, count: int, media: MediaInputs) -> list[ViewTokens]:
        """Divide a run of `count` contiguous image tokens into views, which take up all of it.

        Raises:
            InputError: the run is not a whole number of images.
        """
        raise InputError(f"a {self.name} model has no image tokens")

    def measured_boxes(self, views: Sequence[View], pieces: Sequence[Shares | None]) -> list[Shares | None]:
        """The boxes of the views of an image, given what its pieces of pixels show.

        By default a view is a piece; pieces of padding alone may follow. `pieces` are in the order of the
        processor, None where nothing of the image is shown.
        """
        if len(pieces) < len(views) or any(pieces[len(views) :]):
            return [view.box for view in views]
        return list(pieces[: len(views)])

    def hook_target(self, model: PreTrainedModel) -> PreTrainedModel:
        """The part of `model` that regaze hooks: its forward runs once per step.

        It is the model itself, unless `model.generate` calls `generate` of a part.
        """
        return model

    def cross_tokens(self, inputs: Mapping[str, Any], batch: int, keys: int) -> TokenMap:
        """What each key of the cross-attention layers shows, for models that have such layers.

        Args:
            inputs: the arguments of the forward. batch, keys: shape of the keys, [batch, keys].

        Raises:
            UnsupportedModelError: the family does not say.
        """
        raise UnsupportedModelError(
            f"regaze does not know what the {keys} keys of the cross-attention layers of "
            f"{self.config.model_type!r} show; add a family (CONTRIBUTING.md)"
        )

    def fix_inputs(self, inputs: BatchFeature) -> BatchFeature:
        """The processor's outputs, corrected where padding changes the answer to a prompt."""
        return inputs

    def format_prompt(self, question: str, images: int, system: str | None) -> str:
        """The prompt for processors without a chat template, as the family's authors write it."""
        if images or system:
            raise InputError(
                "this processor has no chat template to build a prompt with an image or system text"
            )
        return question


class VisionFamily(Family):
    """A family whose configuration names the id of its image tokens."""

    @property
    def image_token_ids(self) -> tuple[int, ...]:
        image = config_image_token_id(self.config)
        return () if image is None else (image,)


def config_image_token_id(config: object) -> int | None:
    """The id of image tokens that a configuration names, or None."""
    names = ("image_token_id", "image_token_index")
    return next((found for name in names if isinstance(found := getattr(config, name, None), int)), None)


def runs(flags: Sequence[bool]) -> list[tuple[int, int]]:
    """(start, length) of each run of True."""
    found: list[tuple[int, int]] = []
    for i, flag in enumerate(flags):
        if flag and i and flags[i - 1]:
            found[-1] = (found[-1][0], found[-1][1] + 1)
        elif flag:
            found.append((i, 1))
    return found


def count_images(count: int, per_image: int, what: str) -> int:
    """How many images of `per_image` tokens a run of `count` has. Raises InputError for a remainder."""
    if count % per_image:
        raise InputError(
            f"{count} neighbouring image tokens are not a whole number of images of {per_image} tokens "
            f"({what})"
        )
    return count // per_image


def tile_boxes(rows: int, columns: int) -> list[Shares]:
    """The boxes of the tiles, row by row, of an image that `rows` x `columns` tiles cover."""
    return [
        (column / columns, row / rows, (column + 1) / columns, (row + 1) / rows)
        for row in range(rows)
        for column in range(columns)
    ]


def cells_with_row_ends(rows: int, columns: int) -> list[int]:
    """Cells of a row-major grid in which each row ends in a token without a place."""
    return [cell for row in range(rows) for cell in (*range(row * columns, (row + 1) * columns), -1)]
