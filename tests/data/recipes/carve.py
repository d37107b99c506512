"""CARVE: maps of two prompts fused, the best regions of a map, and the part of a picture that they leave."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from PIL import Image

from recipes.base import Array, Golden, normal, probabilities


def enlarged(map_: Array, height: int, width: int) -> Array:
    """[..., rows, columns] to pixels: linear between the centres of cells, constant beyond the outer ones."""
    for axis, size in ((-2, height), (-1, width)):
        count = map_.shape[axis]
        at = ((np.arange(size) + 0.5) * count / size - 0.5).clip(0, count - 1)
        low = np.floor(at).astype(int).clip(0, max(count - 2, 0))
        share = (at - low).reshape((-1, 1) if axis == -2 else (-1,))
        first, second = (np.take(map_, np.minimum(low + more, count - 1), axis) for more in (0, 1))
        map_ = first * (1 - share) + second * share
    return map_


def regions_of(mask: Array) -> list[Array]:
    """Connected parts of a mask, neighbours share a side; flat indices, in order of their first pixels."""
    width = mask.shape[1]
    left, parts = {(row, column) for row, column in zip(*mask.nonzero(), strict=True)}, []
    for pixel in sorted(left):
        if pixel not in left:
            continue
        part, open_ = [], [pixel]
        left.remove(pixel)
        while open_:
            row, column = open_.pop()
            part.append(row * width + column)
            for near in ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)):
                if near in left:
                    left.remove(near)
                    open_.append(near)
        parts.append(np.array(part))
    return parts


def fuse() -> Golden:
    """Contrast of a question's maps with a description's."""
    rng = np.random.default_rng(19)
    words = (
        "sum over steps of weight x sum over layers of A_question / (A_general + lambda), enlarged to the "
        "image; step t weighs t + 1, or the first alone"
    )
    golden = Golden("carve", "fuse", words)
    for name, (asked, described), layers, (rows, columns), (width, height), used, lam, mode in (
        ("all", (3, 4), 4, (5, 7), (39, 27), [1, 2, 3], 1e-8, "all"),
        ("first", (2, 2), 3, (6, 6), (31, 31), [0, 2], 0.02, "first"),
        ("many", (4, 3), 3, (4, 6), (20, 33), [0, 1, 2], 0.001, "all"),
    ):
        question, general = (
            probabilities(rng, steps, layers, rows * columns) for steps in (asked, described)
        )
        steps = min(asked, described) if mode == "all" else 1
        contrast = (question[:steps, used] / (general[:steps, used] + lam)).sum(1)
        total = sum((step + 1) * contrast[step].reshape(rows, columns) for step in range(steps))
        params = {
            "grid": [rows, columns],
            "image_width": width,
            "image_height": height,
            "fused_layers": used,
            "lam": lam,
            "step_mode": mode,
        }
        fused = enlarged(np.asarray(total), height, width)
        golden.case(name, params, {"question": question, "general": general}, {"fused": fused})
    return golden


def mask_crop() -> Golden:
    """The best regions, the masked picture and its enlarged part (whose pixels are Pillow's)."""
    rng = np.random.default_rng(20)
    words = (
        "map >= percentile(100 (1 - top)), connected regions ranked by sum or area; the rest black; the "
        "box of what is left, enlarged to cover the image"
    )
    golden = Golden("carve", "mask_crop", words)
    for name, (height, width), top, kept, strategy in (
        ("one", (26, 34), 0.2, 1, "attention_sum"),
        ("two", (31, 24), 0.1, 2, "attention_sum"),
        ("area", (28, 28), 0.15, 2, "size"),
    ):
        best: list[Array] = []
        while not kept < len(best) < (kept + 1) / top:  # so that the released least number is as many
            values = np.abs(enlarged(normal(rng, 7, 7), height, width)).astype(np.float32).astype(np.float64)
            mask = values >= np.percentile(values, 100 * (1 - top))
            score = {"attention_sum": lambda part, v=values: v.ravel()[part].sum(), "size": len}[strategy]
            best = sorted(regions_of(mask), key=score, reverse=True)
        left = np.zeros(height * width, bool)
        left[np.concatenate(best[:kept])] = True
        left = left.reshape(height, width)
        picture = rng.integers(0, 256, (height, width, 3)).astype(np.uint8)
        masked = np.where(left[..., None], picture, 0).astype(np.uint8)
        rows, columns = left.any(1).nonzero()[0], left.any(0).nonzero()[0]
        box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
        w, h = box[2] - box[0], box[3] - box[1]
        scale = max(width / w, height / h)
        size = (int(w * scale), int(h * scale))
        crop = np.asarray(Image.fromarray(masked).crop(box).resize(size, Image.Resampling.LANCZOS))
        params = {"top_percent": top, "min_keep_regions": kept, "strategy": strategy}
        outputs = {"mask": left.astype(np.uint8), "box": np.array(box), "masked": masked, "crop": crop}
        golden.case(name, params, {"map": values, "image": picture}, outputs)
    return golden


def goldens() -> Iterator[Golden]:
    """Both."""
    yield from (fuse(), mask_crop())
