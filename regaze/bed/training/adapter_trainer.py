"""The adapter's training loop: conversations about new scenes, with tower, projector and SmolLM2 frozen."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regaze.bed.training.adapter import adapter_weights, attach
from regaze.bed.training.log import EVERY, Log
from regaze.bed.training.own_words import divergence
from regaze.bed.training.processor import IMAGE_TOKENS
from regaze.bed.training.recipe import Recipe, Stage
from regaze.bed.training.rows import IGNORED, Collator
from regaze.demo.training.model import pixel_batch
from regaze.demo.training.render import Rendered, render_scene
from regaze.writing import replacing

BATCH, GROUP = (
    4,
    8,
)  # conversations of a step; of these many, the shorter and the longer ones make a step each
WARMUP, FALLING = 15, 0.4  # steps until the peak learning rate; share of the steps in which it falls
SAVE_EVERY = 180.0  # seconds
STAGE_SCENES = 100_000_000  # stages draw from separate ranges of scene numbers


class AdapterTrainer:
    """Trains the adapter on conversations; what it is and has seen can be stored and loaded.

    Args:
        base: SmolLM2.
        sight: pixels -> embeddings of the patches.
        texts: token ids of texts on which the adapter is held to SmolLM2 (`own_words`).
    """

    def __init__(
        self, base: Any, sight: Callable[[Tensor], Tensor], processor: Any, texts: Sequence[list[int]],
        recipe: Recipe, seed: int,
    ) -> None:  # fmt: skip
        self.recipe, self.seed, self.sight, self.processor = recipe, seed, sight, processor
        self.texts = texts
        torch.manual_seed(seed)
        self.model = attach(base, recipe)  # from here on `base` has the adapter in its layers
        self.core, self.head = base.model, base.get_output_embeddings()
        self.embed = base.get_input_embeddings()
        self.image = processor.tokenizer.image_token_id
        yes_no = (processor.tokenizer.encode(word, add_special_tokens=False)[0] for word in ("Yes", "No"))
        self.yes, self.no = yes_no
        self.collate = Collator(processor.tokenizer, IMAGE_TOKENS)
        self.parameters = [weight for weight in self.model.parameters() if weight.requires_grad]
        self.optimiser = torch.optim.AdamW(self.parameters, betas=(0.9, 0.98), weight_decay=0.0)
        self.stage, self.step, self.tokens, self.cpu_before = 0, 0, 0, 0.0

    def run(self, output: Path, log: Log) -> None:
        """Train to the end of the recipe, from wherever this is, with checkpoints."""
        saved, recent = time.monotonic(), list[tuple[float, float, float, float]]()
        while self.stage < len(self.recipe.stages):
            stage = self.recipe.stages[self.stage]
            while self.step < stage.conversations // BATCH:
                recent += self._group(stage)
                if self.step % EVERY == 0:
                    loss, away, right, asked = torch.tensor(recent, dtype=torch.float64).mean(0).tolist()
                    log.write(
                        f"adapter {self.stage + 1}", self.step, loss, right / max(asked, 1e-9), self.tokens,
                        self.cpu, away,
                    )  # fmt: skip
                    recent = []
                if time.monotonic() - saved > SAVE_EVERY:
                    self.save(output / "state.pt")
                    saved = time.monotonic()
            self.stage, self.step = self.stage + 1, 0
            self.optimiser.state.clear()
        self.save(output / "state.pt")

    @property
    def cpu(self) -> float:
        """CPU seconds, those before a resumption included."""
        return self.cpu_before + time.process_time()

    def _group(self, stage: Stage) -> list[tuple[float, float, float, float]]:
        """Two steps, on the shorter and on the longer half of the next conversations."""
        first = STAGE_SCENES * self.stage + BATCH * self.step
        numbered = [(first + i, render_scene(self.seed, "train", first + i)) for i in range(GROUP)]
        rows = self.collate.rows(numbered, self.seed, stage.noise)
        return [self._step(stage, rows[start : start + BATCH]) for start in (0, BATCH)]

    def _step(self, stage: Stage, rows: list[tuple[Any, ...]]) -> tuple[float, float, float, float]:
        """One step; returns the loss, the divergence from SmolLM2, right and all yes/no answers."""
        rate = stage.learning_rate * _schedule(self.step, stage)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.zero_grad()
        away = self._hold()
        loss, right, asked = self._teach(rows)
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimiser.step()
        self.step += 1
        return loss, away, right, asked

    def _teach(self, rows: list[tuple[Any, ...]]) -> tuple[float, float, float]:
        """Gradients of conversations; returns the loss, right and all yes/no answers."""
        batch = self.collate.pad_rows(rows)
        hidden = self.core(
            inputs_embeds=self.embeddings(batch.ids, [row[-1] for row in rows]), use_cache=False
        )
        labels, weights = batch.labels[:, 1:], batch.weights[:, 1:]
        kept = labels != IGNORED
        logits = self.head(hidden.last_hidden_state[:, :-1][kept]).float()
        labels = labels[kept]
        loss = (weights[kept] * F.cross_entropy(logits, labels, reduction="none")).sum()
        loss.backward()
        self.tokens += int(batch.length.sum())
        asked = (labels == self.yes) | (labels == self.no)
        said_yes = logits[asked, self.yes] > logits[asked, self.no]
        return loss.item(), float((said_yes == (labels[asked] == self.yes)).sum()), float(asked.sum())

    def _hold(self) -> float:
        """Gradients of the divergence from SmolLM2 on the next text; returns the divergence."""
        text = self.texts[self.step % len(self.texts)]
        away = divergence(
            lambda ids: self.core(input_ids=ids, use_cache=False).last_hidden_state, self.head, text,
            self.model.disable_adapter(),
        )  # fmt: skip
        (self.recipe.hold * away).backward()
        self.tokens += len(text)
        return away.item()

    @torch.no_grad()
    def embeddings(self, ids: Tensor, scenes: list[Rendered]) -> Tensor:
        """Embeddings of rows whose image tokens are those of ``scenes``, [B, L, H]."""
        image = self.processor.image_processor
        pixels = pixel_batch([scene.pixels for scene in scenes], image.image_mean, image.image_std)
        words: Tensor = self.embed(ids)
        return words.masked_scatter((ids == self.image)[..., None], self.sight(pixels).to(words.dtype))

    def save(self, path: Path) -> None:
        """Store everything that going on needs."""
        state = {
            "recipe": asdict(self.recipe),
            "adapter": adapter_weights(self.model),
            "optimiser": self.optimiser.state_dict(),
            "progress": (self.stage, self.step, self.tokens, self.cpu),
        }
        with replacing(path) as partial:
            torch.save(state, partial)

    def load(self, path: Path) -> None:
        """Go on from `save`."""
        state = torch.load(path)
        mine = adapter_weights(self.model)
        with torch.no_grad():
            for name, weight in state["adapter"].items():
                mine[name].copy_(weight)
        self.optimiser.load_state_dict(state["optimiser"])
        self.stage, self.step, self.tokens, self.cpu_before = state["progress"]


def _schedule(step: int, stage: Stage) -> float:
    """Factor of the learning rate: rises over the first steps, falls over the last part."""
    left = 1 - step / (stage.conversations // BATCH)
    return min(1.0, (step + 1) / WARMUP) * min(1.0, max(stage.decay_to, left / FALLING))
