"""The losses of the five stages; `regaze.demo.training.train` says what each is for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from regaze.demo.phrases import place
from regaze.demo.shipped import SceneObject
from regaze.demo.training.batches import IGNORED, Collator
from regaze.demo.training.model import HIDDEN, common_part
from regaze.demo.training.render import PATCH, SIDE, Rendered
from regaze.demo.training.trainer import Trainer
from regaze.demo.world import CATEGORIES, COLOURS

PLACE_WEIGHT = 0.4  #: of the words for a patch's place, relative to those for its content


def run_stage(trainer: Trainer, name: str) -> None:
    """Train the stage called ``name``, one of `regaze.demo.training.recipe.STAGES`."""
    if name == "vision":
        train_vision(trainer)
    elif name == "projector":
        train_projector(trainer)
    else:
        train_answers(trainer, name)


class PatchHead(nn.Module):
    """Linear probes for category and colour of every patch; used by the first stage only."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(HIDDEN)
        self.category = nn.Linear(HIDDEN, len(CATEGORIES) + 1)
        self.colour = nn.Linear(HIDDEN, len(COLOURS) + 1)

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Features [B, 64, H] to category and colour logits; the last class of each is "none"."""
        normed = self.norm(features)
        return self.category(normed), self.colour(normed)


def patch_labels(scenes: list[Rendered]) -> tuple[torch.Tensor, torch.Tensor]:
    """Category and colour index per patch, [B, 64]; -1 is none."""
    categories = torch.from_numpy(np.stack([s.patch_category for s in scenes])).flatten(1)
    return categories, torch.from_numpy(np.stack([s.patch_colour for s in scenes])).flatten(1)


def _patch_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross entropy where label -1 means the last class."""
    return F.cross_entropy(logits.flatten(0, 1).float(), (labels % logits.shape[-1]).flatten())


def train_vision(trainer: Trainer) -> None:
    """Stage 1. The logged accuracy is that of the category on patches that show an object."""
    head = PatchHead()
    tower: nn.Module = trainer.model.model.vision_tower

    def loss_of(_: int, scenes: list[Rendered]) -> tuple[torch.Tensor, torch.Tensor]:
        categories, colours = patch_labels(scenes)
        category_logits, colour_logits = head(tower(trainer.pixels(scenes)).last_hidden_state[:, 1:])
        loss = _patch_loss(category_logits, categories) + 0.3 * _patch_loss(colour_logits, colours)
        shown = categories >= 0
        return loss, (category_logits.argmax(-1) == categories)[shown].float().mean()

    parameters = [*tower.parameters(), *head.parameters()]
    trainer.run("vision", [{"params": parameters, "lr": trainer.recipe.vision.learning_rate}], loss_of)


@dataclass(frozen=True)
class WordTargets:
    """Where the projector should put a patch: sums of word embeddings, without the part common to all words.

    Attributes:
        categories: [67, H]. colours: [6, H].
        places: [64, H], of the cell of the 3 x 3 grid in which a patch lies.
        background: [H], the image token's.
    """

    categories: torch.Tensor
    colours: torch.Tensor
    places: torch.Tensor
    background: torch.Tensor

    @classmethod
    def of(cls, trainer: Trainer) -> WordTargets:
        """The targets in the embeddings of the trainer's model."""
        embedding = trainer.model.get_input_embeddings().weight.detach()  # type: ignore[operator]
        embedding = embedding - common_part(embedding)
        tokenizer = trainer.processor.tokenizer

        def embed(phrases: Sequence[str]) -> torch.Tensor:
            ids = [tokenizer.encode(f" {phrase}", add_special_tokens=False) for phrase in phrases]
            return torch.stack([embedding[row].sum(0) for row in ids])

        patches = [(x, y) for y in range(0, SIDE, PATCH) for x in range(0, SIDE, PATCH)]
        cells = [place(SceneObject("", (x, y, x + PATCH, y + PATCH))) for x, y in patches]
        places = embed([cell.split(" the ")[1] for cell in cells])  # "in the upper left": "upper left"
        return cls(
            embed(CATEGORIES), embed(tuple(COLOURS)), places, embedding[trainer.processor.image_token_id]
        )

    def attributes(self, colours: torch.Tensor) -> torch.Tensor:
        """What patches show in addition to a category: colour ([B, 64], -1: none) and place, [B, 64, H]."""
        return self.colours[colours] * (colours >= 0)[..., None] + PLACE_WEIGHT * self.places


def train_projector(trainer: Trainer) -> None:
    """Stage 2. The logged accuracy is that of the category embedding nearest to each patch of an object."""
    llava, words = trainer.model.model, WordTargets.of(trainer)

    def loss_of(_: int, scenes: list[Rendered]) -> tuple[torch.Tensor, torch.Tensor]:
        categories, colours = patch_labels(scenes)
        shown, attributes = categories >= 0, words.attributes(colours)
        target = torch.where(shown[..., None], words.categories[categories] + attributes, words.background)
        with torch.no_grad():
            features = llava.vision_tower(trainer.pixels(scenes)).last_hidden_state[:, 1:]
        projected = llava.multi_modal_projector(features).float()
        error = (projected - target).square().mean(-1) / target.var()
        category_part = (projected - attributes)[shown].detach()
        right = torch.cdist(category_part, words.categories).argmin(-1) == categories[shown]
        return error[shown].mean() + error[~shown].mean(), right.float().mean()

    parameters = list(llava.multi_modal_projector.parameters())
    trainer.run("projector", [{"params": parameters, "lr": trainer.recipe.projector.learning_rate}], loss_of)


def answer_loss(
    trainer: Trainer, batch: dict[str, torch.Tensor], frozen_vision: bool, yes_no: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross entropy of the answers, and the accuracy of those that are yes or no (ids in ``yes_no`` [2])."""
    model = trainer.model
    embeds = model.get_input_embeddings()(batch["input_ids"])
    with torch.set_grad_enabled(not frozen_vision):
        features = torch.cat(model.get_image_features(batch["pixel_values"], return_dict=True).pooler_output)
    is_image = (batch["input_ids"] == trainer.processor.image_token_id)[..., None]
    embeds = embeds.masked_scatter(is_image, features.to(embeds.dtype))
    # Padding is on the right, where no answer can see it: the causal mask alone is enough.
    hidden = model.model.language_model(inputs_embeds=embeds, use_cache=False).last_hidden_state[:, :-1]
    labels = batch["labels"][:, 1:]
    answered = labels != IGNORED
    logits, labels = model.lm_head(hidden[answered]).float(), labels[answered]
    judged = torch.isin(labels, yes_no)
    accuracy = (logits.argmax(-1) == labels)[judged].float().mean()
    weights = batch["weights"][:, 1:][answered]
    return (weights * F.cross_entropy(logits, labels, reduction="none")).sum() / weights.sum(), accuracy


def train_answers(trainer: Trainer, name: str) -> None:
    """Stages 3 to 5: "language" (true answers, frozen vision), "mix" and "describe" (noise, all trained)."""
    model, recipe, frozen_vision = trainer.model, trainer.recipe, name == "language"
    stage = recipe.stage(name)
    assert stage.data is not None
    collate = Collator(trainer.processor, stage.data, trainer.seed)
    yes_no = torch.tensor([collate.encode(" Yes")[0], collate.encode(" No")[0]])

    def loss_of(index: int, scenes: list[Rendered]) -> tuple[torch.Tensor, torch.Tensor]:
        return answer_loss(trainer, collate(index, scenes), frozen_vision, yes_no)

    llama = model.model.language_model
    layers = [*llama.layers.parameters(), *llama.norm.parameters()]
    groups = [{"params": layers, "lr": stage.learning_rate}]
    if not frozen_vision:
        # The word embeddings, and with them the tied head, are the projector's targets: they move with it.
        words = [*model.get_input_embeddings().parameters()]
        vision = [*model.model.vision_tower.parameters(), *model.model.multi_modal_projector.parameters()]
        groups.append({"params": [*words, *vision], "lr": recipe.slow_learning_rate})
    trainer.run(name, groups, loss_of)
