"""`TokenMap`: the role of each token of a batch, and the image cell that it shows."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from regaze.display import Summary, Tabular, long_table, shortened
from regaze.errors import InputError
from regaze.toolkit.prompts.picture import WHOLE, Picture, Shares, within


class Role(IntEnum):
    """The role of a token. OUTPUT is 0, the group of all keys beyond those of an edit."""

    OUTPUT = 0  #: the generated answer
    PAD = 1
    SYSTEM = 2  #: all before the image and the question
    IMAGE = 3
    SEPARATOR = 4  #: between image and question, and between parts of an image
    QUERY = 5  #: the user's question
    TAIL = 6  #: end of turn and assistant header


@dataclass(frozen=True)
class View:
    """A grid of tokens that shows an image, a tile of it, or a frame of a video.

    Attributes:
        grid: (rows, columns) of its cells; (0, 0) where tokens have no place (the queries of a resampler).
        image: number of the image (or video) in the prompt.
        box: the part of the image that it shows; beyond 0 and 1 where the processor pads. It is None where
            that is not known. Where `picture` is None and the processor pads or crops, it is the part of what
            the processor made of the image.
        frame: number of the frame, for a video.
        picture: the image, where the inputs are those of `Gaze.inputs`.
    """

    grid: tuple[int, int]
    image: int = 0
    box: Shares | None = WHOLE
    frame: int | None = None
    picture: Picture | None = field(default=None, compare=False)


def boxes_on(views: Sequence[View], copy: Image.Image) -> list[Shares | None]:
    """The boxes of the views of one image, in fractions of a copy of it.

    Args:
        copy: the image in any size, whole or as the model receives it (`Gaze.seen`).

    Raises:
        InputError: it has another shape than the image.
    """
    if any(view.frame is not None for view in views):
        return [view.box for view in views]
    picture = next((view.picture for view in views), None)
    if picture is None:
        _check_cells(views, copy)
        return [view.box for view in views]
    part = picture.shown_by(copy)
    if part is None:
        width, height = picture.size
        received = "" if picture.seen is None else ", received as {} x {}".format(*picture.seen)
        raise InputError(
            f"the picture has {copy.width} x {copy.height} pixels, but the model was asked about one of "
            f"{width} x {height}{received}; give that one, or gaze.seen(image)"
        )
    return [None if view.box is None else within(view.box, part) for view in views]


def _check_cells(views: Sequence[View], copy: Image.Image) -> None:
    """Compare the shape of an image with that of the views, whose cells are square.

    Raises:
        InputError: they differ by more than a cell.
    """
    placed = [(view.grid, view.box) for view in views if all(view.grid) and view.box is not None]
    if not placed:
        return
    shapes = [(columns / (box[2] - box[0]), rows / (box[3] - box[1])) for (rows, columns), box in placed]
    cells = max(shapes, key=math.prod)
    slack = 1.02 * (1 + 1 / cells[0]) * (1 + 1 / cells[1])
    ratio = copy.width / copy.height * cells[1] / cells[0]
    if not 1 / slack <= ratio <= slack:
        raise InputError(
            f"the picture has {copy.width} x {copy.height} pixels, but the tokens of the image are "
            f"{cells[0]:.3g} x {cells[1]:.3g} square cells, and its own size is not known; give "
            "gaze.seen(image), or ask with inputs of gaze.inputs"
        )


@dataclass(frozen=True)
class PromptTokens:
    """The tokens of one prompt, without padding.

    Attributes:
        roles: [n] `Role` of each token.
        view: [n] number of the view a token belongs to, -1 for text.
        cell: [n] row-major grid cell of an image token, -1 for text and for image tokens without a place.
        views: of its images, in order; a model without tiles has one view per image.
    """

    roles: tuple[int, ...]
    view: tuple[int, ...]
    cell: tuple[int, ...]
    views: tuple[View, ...] = ()

    @property
    def images(self) -> int:
        """Number of images in the prompt."""
        return 1 + max((view.image for view in self.views), default=-1)


@dataclass(frozen=True, eq=False, repr=False)
class TokenMap(Tabular):
    """The roles of a padded batch, on the CPU.

    Attributes:
        roles: [B, L] uint8 `Role`.
        view: [B, L] int32 number of the view or -1. cell: [B, L] int32 grid cell or -1.
        views: those of each sample.
    """

    roles: Tensor
    view: Tensor
    cell: Tensor
    views: tuple[tuple[View, ...], ...]
    _masks: dict[tuple[int, ...], Tensor] = field(default_factory=dict, init=False, repr=False)

    def __repr__(self) -> str:
        counts = {role: int((self.roles == role).sum()) for role in Role}
        roles = ", ".join(f"{count} {role.name}" for role, count in counts.items() if count)
        return f"TokenMap({self.batch} x {self.length} tokens: {roles}; grids {_grids(self.grids)})"

    def table(self) -> dict[str, Sequence[Any]]:
        """A row per token, padding included."""
        batch, length = self.roles.shape
        axes = {"sample": range(batch), "column": range(length)}
        table = long_table(axes, role=self.roles, view=self.view, cell=self.cell)
        return table | {"role": [Role(role).name.lower() for role in table["role"]]}

    def _summary(self) -> Summary:
        """How many tokens of each role the samples have."""
        counts = {role.name.lower(): (self.roles == int(role)).sum(1).tolist() for role in Role}
        seen = {name: values for name, values in counts.items() if any(values)}
        grids = [_grids([each]) for each in self.grids]
        return Summary("tokens by role", {"sample": range(self.batch), **seen, "grids": grids})

    @classmethod
    def from_roles(cls, roles: Tensor | Sequence[Sequence[int]]) -> TokenMap:
        """A map of given roles [B, L], for prompts that regaze cannot read; image tokens have no grid."""
        try:
            roles = torch.as_tensor(roles)
        except (TypeError, ValueError) as error:
            raise InputError(f"roles must be [B, L] with rows of one length: {error}") from None
        if roles.dim() != 2:
            raise InputError(f"roles must be [B, L], got {list(roles.shape)}")
        strange = roles[(roles < 0) | (roles >= len(Role))]
        if len(strange):
            raise InputError(f"roles are numbers of `Role`, 0 to {len(Role) - 1}; got {int(strange[0])}")
        roles = roles.to(torch.uint8)
        view = torch.where(roles == Role.IMAGE, 0, -1).int()
        return cls(roles, view, torch.full_like(view, -1), ((),) * roles.shape[0])

    @classmethod
    def from_samples(cls, samples: Sequence[PromptTokens], visible: Tensor) -> TokenMap:
        """Samples at the visible positions of an attention mask [B, L], padded on either side."""
        batch, length = visible.shape
        roles = torch.full((batch, length), int(Role.PAD), dtype=torch.uint8)
        view = torch.full((batch, length), -1, dtype=torch.int32)
        cell = torch.full((batch, length), -1, dtype=torch.int32)
        for row, sample in enumerate(samples):
            places = visible[row].bool().nonzero().flatten()
            if len(places) != len(sample.roles):
                raise InputError(
                    f"row {row} shows {len(places)} tokens, but its prompt has {len(sample.roles)}"
                )
            roles[row, places] = torch.tensor(sample.roles, dtype=torch.uint8)
            view[row, places] = torch.tensor(sample.view, dtype=torch.int32)
            cell[row, places] = torch.tensor(sample.cell, dtype=torch.int32)
        return cls(roles, view, cell, tuple(sample.views for sample in samples))

    @property
    def grids(self) -> tuple[tuple[tuple[int, int], ...], ...]:
        """For each sample the (rows, columns) of its views."""
        return tuple(tuple(view.grid for view in views) for views in self.views)

    @property
    def batch(self) -> int:
        return self.roles.shape[0]

    @property
    def length(self) -> int:
        return self.roles.shape[1]

    def mask(self, *roles: Role) -> Tensor:
        """[B, L] bool, the tokens with one of these roles."""
        key = tuple(int(role) for role in roles)
        if key not in self._masks:
            if len(key) == 1:  # isin takes ten times as long
                self._masks[key] = self.roles == key[0]
            else:
                self._masks[key] = torch.isin(self.roles, torch.tensor(key, dtype=torch.uint8))
        return self._masks[key]

    def columns(self, role: Role, sample: int = 0) -> Tensor:
        """The positions of a role in one sample, [n] int64, increasing."""
        return (self.roles[sample] == int(role)).nonzero().flatten()

    def after_image(self) -> Tensor:
        """[B, L] bool, the text tokens after the first image token of their sample."""
        images = self.mask(Role.IMAGE)
        return images.cumsum(1).bool() & ~images & ~self.mask(Role.PAD)

    def after_last_image(self) -> Tensor:
        """[B, L] bool, the tokens after the last image token of their sample; none where it has no image."""
        images = self.mask(Role.IMAGE)
        later = images.flip(1).cumsum(1).flip(1)  # image tokens from here on
        return images.any(1, keepdim=True) & (later == 0) & ~self.mask(Role.PAD)

    def image_cells(self, sample: int = 0, view: int = 0) -> Tensor:
        """The positions of the cells of a view (its number), row-major, [rows * columns] int64.

        Raises:
            InputError: the sample has no such view, or its grid is not known.
        """
        if sample >= self.batch:
            raise InputError(f"there is no sample {sample} in a batch of {self.batch}")
        views = self.views[sample]
        if view >= len(views) or not all(views[view].grid):
            known = sum(all(each.grid) for each in views)
            raise InputError(
                f"sample {sample} has {known} views of images with a known grid, not view {view}"
            )
        rows, columns = views[view].grid
        here = (self.view[sample] == view) & (self.cell[sample] >= 0)
        places = here.nonzero().flatten()
        order = torch.empty(rows * columns, dtype=torch.int64)
        order[self.cell[sample, places].long()] = places
        return order

    def repeat(self, times: int) -> TokenMap:
        """Each sample repeated `times` times, as `generate` expands a batch for beams."""
        roles, view, cell = (x.repeat_interleave(times, 0) for x in (self.roles, self.view, self.cell))
        return TokenMap(roles, view, cell, tuple(views for views in self.views for _ in range(times)))

    def last(self) -> Tensor:
        """[B, L] bool, the last token of each sample: its row predicts the first generated token."""
        real = ~self.mask(Role.PAD)
        last = torch.zeros_like(real)
        last[torch.arange(self.batch), self.length - 1 - real.flip(1).int().argmax(1)] = True
        return last

    def answering(self) -> Tensor:
        """[B, L] bool, tokens whose rows predict the answer: the prompt's last token and those of OUTPUT."""
        output = self.mask(Role.OUTPUT)
        prompt = ~(output | self.mask(Role.PAD))
        return output | (prompt & (prompt.flip(1).cumsum(1).flip(1) == 1))

    def padded_where(self, mask: Tensor) -> TokenMap:
        """The map with some tokens, [B, L] bool, changed to padding.

        A sample that loses an image token has no views.
        """
        roles = self.roles.masked_fill(mask, int(Role.PAD))
        view, cell = self.view.masked_fill(mask, -1), self.cell.masked_fill(mask, -1)
        incomplete = (mask & self.mask(Role.IMAGE)).any(1).tolist()
        views = tuple(() if lost else views for lost, views in zip(incomplete, self.views, strict=True))
        return TokenMap(roles, view, cell, views)

    def rows(self, rows: slice, first: int = 0) -> TokenMap:
        """Some of the samples, without the padding in the columns before `first`."""
        roles, view, cell = (part[rows, first:] for part in (self.roles, self.view, self.cell))
        return TokenMap(roles, view, cell, self.views[rows])

    @classmethod
    def stack(cls, maps: Sequence[TokenMap]) -> TokenMap:
        """The samples of all maps as one batch, padded on the left."""
        length = max(each.length for each in maps)

        def join(name: str, padding: int) -> Tensor:
            parts = [getattr(each, name) for each in maps]
            return torch.cat([F.pad(part, (length - part.shape[1], 0), value=padding) for part in parts])

        views = tuple(views for each in maps for views in each.views)
        return cls(join("roles", int(Role.PAD)), join("view", -1), join("cell", -1), views)


def _grids(samples: Sequence[Sequence[tuple[int, int]]]) -> str:
    """The grids of the views of each sample, equal ones once."""
    shapes = {
        " + ".join(f"{f'{count} times ' * (count > 1)}{rows} x {columns}" for (rows, columns), count in views)
        for views in (Counter(each).items() for each in samples)
    }
    return shortened(" or ".join(sorted(shapes)), 160)
