"""MMA: masks in which the image looks at the text behind it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from recipes.base import Array, Golden

IMAGE, ASSISTANT = 90, 80


def mask_of(roles: list[list[str]], opened: str) -> Array:
    """[B, 1, N, N]: causal, and image rows see the columns of these kinds too; nobody sees padding."""
    masks = []
    for row in roles:
        seen = np.tril(np.ones((len(row), len(row)), np.uint8))
        for i, at in enumerate(row):
            for j, to in enumerate(row):
                if at == "i" and to in opened:
                    seen[i, j] = 1
                if to == "p":
                    seen[i, j] = 0
        masks.append(seen)
    return np.stack(masks)[:, None]


def goldens() -> Iterator[Golden]:
    """`mask`: the paper opens the question (q), the release also the marks (m) up to the assistant's."""
    golden = Golden(
        "mma",
        "mask",
        "1 where row i may look at column j; s, i, q, m, a: before, image, question, marks, answer",
    )
    rng = np.random.default_rng(11)
    for name, latents, texts, padding in (
        ("one", 2, ["s<qqma"], 0),
        ("two", 4, ["ss<qqqqmmaa", "s<qqqmaa"], 1),
        ("three", 3, ["<qma", "s<qqmaaa", "sss<qqma"], 1),
    ):
        length = max(map(len, texts)) + padding
        texts = [text + "p" * (length - len(text)) for text in texts]
        ids, samples, roles = rng.integers(1, 70, (len(texts), length)), [], []
        for row, text in enumerate(texts):
            ids[row, text.index("<")] = IMAGE
            assistant = text.rindex("m")
            ids[row, assistant] = ASSISTANT
            samples.append(
                {"image_pos": text.index("<"), "question_end": text.index("m"), "assistant": assistant}
            )
            roles.append(list(text.replace("<", "i" * latents)))
        shown = np.array([[int(letter != "p") for letter in text] for text in texts])
        params = {"n_latents": latents, "image_id": IMAGE, "assistant_id": ASSISTANT, "samples": samples}
        outputs = {"mask_paper": mask_of(roles, "q"), "mask_code": mask_of(roles, "qm")}
        golden.case(name, params, {"ids": ids, "attention": shown}, outputs)
    yield golden
