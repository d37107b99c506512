"""The demo's small world: categories, scene types, and which categories co-occur.

The categories are the 67 of COCO's 80 that the Noto Color Emoji font can draw. A scene has a type (kitchen,
street, savanna, ...) that makes some categories likely, and some categories have a companion (a knife is
mostly seen with a fork). Both make categories co-occur, and co-occurrence is what the demo model learns to
hallucinate from.

Everything is a pure function of a numpy generator; nothing is drawn here.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

#: category -> its emoji; one is picked per object.
EMOJI: dict[str, tuple[str, ...]] = {
    "person": ("🧍", "🚶", "👩", "👨", "🧑"),
    "bicycle": ("🚲",),
    "car": ("🚗", "🚙"),
    "motorcycle": ("🏍",),
    "airplane": ("✈", "🛩"),
    "bus": ("🚌",),
    "train": ("🚆",),
    "truck": ("🚚",),
    "boat": ("⛵", "🚤"),
    "traffic light": ("🚦",),
    "stop sign": ("🛑",),
    "bird": ("🐦", "🐤"),
    "cat": ("🐈", "🐱"),
    "dog": ("🐕", "🐶"),
    "horse": ("🐎",),
    "sheep": ("🐑",),
    "cow": ("🐄",),
    "elephant": ("🐘",),
    "bear": ("🐻",),
    "zebra": ("🦓",),
    "giraffe": ("🦒",),
    "backpack": ("🎒",),
    "umbrella": ("☂",),
    "handbag": ("👜",),
    "tie": ("👔",),
    "suitcase": ("🧳",),
    "frisbee": ("🥏",),
    "skis": ("🎿",),
    "snowboard": ("🏂",),
    "sports ball": ("⚽", "⚾"),
    "kite": ("🪁",),
    "skateboard": ("🛹",),
    "surfboard": ("🏄",),
    "tennis racket": ("🎾",),
    "bottle": ("🍾", "🍼"),
    "wine glass": ("🍷",),
    "cup": ("☕", "🥤"),
    "fork": ("🍴",),
    "knife": ("🔪",),
    "spoon": ("🥄",),
    "bowl": ("🥣",),
    "banana": ("🍌",),
    "apple": ("🍎",),
    "sandwich": ("🥪",),
    "orange": ("🍊",),
    "broccoli": ("🥦",),
    "carrot": ("🥕",),
    "hot dog": ("🌭",),
    "pizza": ("🍕",),
    "donut": ("🍩",),
    "cake": ("🎂", "🍰"),
    "chair": ("🪑",),
    "couch": ("🛋",),
    "potted plant": ("🪴",),
    "bed": ("🛏",),
    "toilet": ("🚽",),
    "tv": ("📺",),
    "laptop": ("💻",),
    "mouse": ("🖱",),
    "keyboard": ("⌨",),
    "cell phone": ("📱",),
    "book": ("📕",),
    "clock": ("🕒", "⏰"),
    "vase": ("🏺",),
    "scissors": ("✂",),
    "teddy bear": ("🧸",),
    "toothbrush": ("🪥",),
}
CATEGORIES: tuple[str, ...] = tuple(EMOJI)

#: colour word -> hue in degrees. Without "orange", which is a category: CHAIR could not tell the two
#: apart.
COLOURS: dict[str, float] = {
    "red": 0.0,
    "yellow": 52.0,
    "green": 120.0,
    "blue": 220.0,
    "purple": 280.0,
    "pink": 325.0,
}

#: Categories whose emoji is one saturated colour, so that turning its hue gives an object of another colour.
COLOURED: frozenset[str] = frozenset(
    [
        "car",
        "bus",
        "truck",
        "motorcycle",
        "umbrella",
        "backpack",
        "handbag",
        "suitcase",
        "frisbee",
        "couch",
        "chair",
        "book",
        "vase",
        "toothbrush",
        "bowl",
        "kite",
    ]
)


@dataclass(frozen=True)
class SceneType:
    """A kind of place: its background colour (RGB) and the relative weights of its categories."""

    name: str
    ground: tuple[int, int, int]
    weights: dict[str, float]


def _type(name: str, ground: tuple[int, int, int], listing: str) -> SceneType:
    """``listing`` is "category weight, category weight, ..."."""
    pairs = (entry.strip().rsplit(" ", 1) for entry in listing.split(","))
    return SceneType(name, ground, {category: float(weight) for category, weight in pairs})


SCENE_TYPES: dict[str, SceneType] = {
    kind.name: kind
    for kind in (
        _type(
            "kitchen",
            (214, 196, 170),
            "knife 4, fork 2, spoon 3, bowl 3, bottle 2, broccoli 2, carrot 2, orange 1, apple 1, cup "
            "2, chair 1, clock 1",
        ),
        _type(
            "street",
            (128, 128, 134),
            "car 5, truck 2, bus 3, bicycle 2, motorcycle 2, traffic light 2, stop sign 1, person 4, "
            "dog 1, umbrella 1",
        ),
        _type(
            "savanna",
            (206, 180, 110),
            "elephant 4, giraffe 3, zebra 2, bird 2, bear 1, truck 1, person 1",
        ),
        _type(
            "farm",
            (136, 178, 92),
            "cow 4, sheep 2, horse 3, dog 2, bird 2, truck 1, person 2, apple 1",
        ),
        _type(
            "office",
            (176, 192, 208),
            "laptop 4, mouse 2, keyboard 3, cell phone 2, cup 2, chair 3, book 2, clock 2, scissors 1, "
            "tie 2, person 3",
        ),
        _type(
            "living room",
            (196, 164, 142),
            "couch 4, tv 2, chair 3, potted plant 2, cat 2, book 2, vase 2, clock 1, teddy bear 1, person 2",
        ),
        _type(
            "bedroom",
            (190, 172, 204),
            "bed 4, teddy bear 2, book 2, clock 2, cell phone 1, cat 2, chair 1, laptop 1",
        ),
        _type(
            "bathroom",
            (170, 214, 216),
            "toilet 4, toothbrush 2, bottle 2, scissors 1, potted plant 1, cup 1",
        ),
        _type(
            "beach",
            (232, 214, 160),
            "surfboard 3, boat 3, umbrella 3, kite 2, frisbee 2, person 4, dog 1, bird 2, handbag 1",
        ),
        _type(
            "mountain",
            (232, 238, 246),
            "skis 4, snowboard 2, person 4, backpack 2, dog 1",
        ),
        _type(
            "airport",
            (152, 164, 176),
            "airplane 4, suitcase 3, handbag 2, backpack 2, person 4, bus 1, cell phone 1, clock 1, tie 1",
        ),
        _type(
            "park",
            (120, 190, 112),
            "dog 3, frisbee 2, bicycle 2, sports ball 3, tennis racket 2, skateboard 2, kite 2, bird 2, "
            "person 4, sandwich 1",
        ),
        _type(
            "restaurant",
            (168, 108, 92),
            "pizza 3, wine glass 2, cake 2, hot dog 2, bottle 2, fork 2, knife 2, cup 2, chair 3, "
            "person 3, vase 1",
        ),
        _type(
            "market",
            (226, 188, 120),
            "apple 3, banana 3, orange 2, broccoli 2, carrot 2, donut 2, sandwich 2, cake 1, handbag 2, "
            "person 2",
        ),
        _type(
            "station",
            (150, 146, 160),
            "train 4, suitcase 2, backpack 2, clock 2, person 3, bicycle 1, cell phone 1, book 1",
        ),
    )
}

#: category -> its companion, which is drawn right after it with probability `COMPANION_RATE`.
COMPANIONS: dict[str, str] = {
    "knife": "fork",
    "fork": "knife",
    "bowl": "spoon",
    "spoon": "bowl",
    "broccoli": "carrot",
    "apple": "banana",
    "banana": "apple",
    "laptop": "mouse",
    "keyboard": "mouse",
    "mouse": "keyboard",
    "pizza": "wine glass",
    "cake": "fork",
    "couch": "tv",
    "tv": "couch",
    "bed": "teddy bear",
    "toilet": "toothbrush",
    "toothbrush": "cup",
    "car": "traffic light",
    "bus": "car",
    "truck": "car",
    "bicycle": "person",
    "motorcycle": "person",
    "elephant": "giraffe",
    "giraffe": "zebra",
    "zebra": "elephant",
    "cow": "sheep",
    "sheep": "cow",
    "horse": "person",
    "surfboard": "person",
    "skis": "person",
    "snowboard": "skis",
    "boat": "bird",
    "airplane": "suitcase",
    "suitcase": "handbag",
    "train": "backpack",
    "tennis racket": "sports ball",
    "frisbee": "dog",
    "skateboard": "person",
    "tie": "person",
    "vase": "potted plant",
    "hot dog": "cup",
    "donut": "cup",
}
COMPANION_RATE = 0.62  #: probability that the companion of an object is drawn right after it
STRAY_RATE = 0.04  #: probability that an object is of any category, whatever the scene type
MAX_OBJECTS = 5


def sample_categories(rng: np.random.Generator) -> tuple[str, list[str]]:
    """Draw a scene type and 1 to 5 distinct categories for it, with their companions."""
    kind = SCENE_TYPES[list(SCENE_TYPES)[rng.integers(len(SCENE_TYPES))]]
    names = list(kind.weights)
    weights = np.array(list(kind.weights.values()))
    count = min(int(rng.choice(MAX_OBJECTS, p=(0.12, 0.20, 0.26, 0.24, 0.18))) + 1, len(names))
    chosen: list[str] = []
    while len(chosen) < count:
        companion = COMPANIONS.get(chosen[-1]) if chosen else None
        if companion is not None and companion not in chosen and rng.random() < COMPANION_RATE:
            chosen.append(companion)
        elif rng.random() < STRAY_RATE:
            stray = CATEGORIES[rng.integers(len(CATEGORIES))]
            if stray not in chosen:
                chosen.append(stray)
        else:
            free = np.array([name not in chosen for name in names])
            if not free.any():
                break
            chosen.append(names[rng.choice(len(names), p=weights * free / (weights * free).sum())])
    return kind.name, chosen


@dataclass(frozen=True)
class CoOccurrence:
    """How often categories occur together.

    Attributes:
        given: [67, 67], P(b in the scene | a in the scene) at [a, b].
        frequency: [67], P(b in the scene).
    """

    given: np.ndarray
    frequency: np.ndarray

    def expectation(self, present: list[str] | tuple[str, ...]) -> np.ndarray:
        """How strongly each category b is expected: max over a in ``present`` of P(b | a), 0 if present."""
        rows = [CATEGORIES.index(name) for name in present]
        expected = self.given[rows].max(axis=0).copy()
        expected[rows] = 0.0
        return expected


@lru_cache(maxsize=1)
def co_occurrence(samples: int = 40_000, seed: int = 20_260_101) -> CoOccurrence:
    """Estimate the world's co-occurrence by drawing ``samples`` scenes (categories only, about a second)."""
    rng = np.random.default_rng(seed)
    index = {name: i for i, name in enumerate(CATEGORIES)}
    present = np.zeros((samples, len(CATEGORIES)), dtype=np.float32)
    for row in present:
        row[[index[name] for name in sample_categories(rng)[1]]] = 1.0
    together = present.T @ present
    alone = np.diag(together).copy()
    np.fill_diagonal(together, 0.0)
    return CoOccurrence(together / np.maximum(alone, 1.0)[:, None], alone / samples)
