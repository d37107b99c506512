"""Tables of the studies: which map points, whether attention explains Whisper, and retrieval heads."""

from __future__ import annotations

from typing import Any

from figures.markdown import estimate, number, table
from figures.sources import read

__all__ = [
    "choices",
    "real_gemma",
    "real_smollm",
    "real_whisper",
    "retrieval_agreement",
    "retrieval_best",
    "retrieval_found",
    "retrieval_heads",
    "retrieval_masking",
    "retrieval_memory",
    "retrieval_plain",
    "seeing_described",
    "seeing_heads",
    "seeing_maps",
    "seeing_objects",
    "seeing_words",
    "speech_agreement",
    "speech_other_ways",
]
REAL = "docs/assets/real-models/figures.json"
SEEING = "docs/studies/seeing/study.json"
OBJECTS = "docs/studies/seeing/objects.json"
SPEECH = "docs/studies/seeing/speech.json"
HEADS = "docs/studies/retrieval-heads/heads.json"
MASKING = "docs/studies/retrieval-heads/study.json"


def choices() -> str:
    """Multiple choice by log-likelihood, under DoLa with and without its cut."""
    found = read("benchmarks/results/choices.json")
    asked, rows = found["questions"], []
    for label, figures in found["settings"].items():
        low, high = (100 * end for end in figures["interval"])
        cut = f"{figures['choices_with_cut_tokens']} of {4 * asked}"
        rows.append([label, f"{figures['right']} of {asked}", f"{low:.0f} to {high:.0f} %", cut])
    return table(["", "right", "95 %", "choices with a cut token"], rows)


# Real models ------------------------------------------------------------------------------------------


def real_smollm() -> str:
    """What SmolLM2 answered, and where the rows that wrote it looked."""
    found = read(REAL)["smollm"]
    return (
        f'"{found["question"]}" gets the answer "{" ".join(found["answer"].split())}" The picture shows '
        f"where the rows that wrote it looked: {number(found['system'])} of the attention is on the system "
        f"text, {number(found['first token'])} on the very first token, the sink that language models form."
    )


def real_gemma() -> str:
    """How far the heads of Gemma look, and what lies beyond the window."""
    found = read(REAL)["gemma"]
    layers = {
        kind: [n for n, is_so in enumerate(found["sliding"]) if is_so == kind] for kind in (True, False)
    }

    def heads(sliding: bool) -> str:
        spread = [tokens for layer in layers[sliding] for tokens in found["distance"][layer]]
        return f"{min(spread):.0f} to {max(spread):.0f}"

    def full(name: str) -> str:
        return ", ".join(number(found[name][layer]) for layer in layers[False])

    return (
        f"The model reads {found['tokens']:,} tokens, with a window of {found['window']}. Layers "
        f"{', '.join(map(str, layers[False]))} are the ones that see everything: their heads look back "
        f"{heads(False)} tokens on average, and of their attention {full('beyond the window')} lies beyond "
        "the window. In the other layers the largest weight beyond it is "
        f"{found['largest weight beyond it in a sliding layer']:g}, as it must be, and heads look back "
        f"{heads(True)} tokens. Much of the long way is the sink: {full('first token')} of the full layers' "
        "attention is on the first token."
    )


def real_whisper() -> str:
    """What Whisper heard, and how much of its attention lies on padding."""
    found = read(REAL)["whisper"]
    padding = ", ".join(f"{100 * share:.0f}" for share in found["on padding"])
    return (
        f'"{found["said"]}" takes {found["seconds"]:.1f} s and is heard as "{found["heard"]}" Only the '
        f"sound is drawn: the other {30 - found['seconds']:.0f} seconds are padding, and get {padding} % of "
        "the attention in the four layers."
    )


# Seeing -----------------------------------------------------------------------------------------------


def seeing_maps() -> str:
    """Every map: pointing, mass, agreement with occlusion, deletion and insertion; the best first."""
    study = read(SEEING)
    deletion, insertion = (study["area"][kind] for kind in ("deletion", "insertion"))

    def areas(name: str) -> list[str]:
        return [estimate(curve[name]["area"]) for curve in (deletion, insertion)]

    rows = []
    maps = {**study["maps"], **study["phrases"]}  # phrases are not about the question whose answer is hidden
    for name, map_ in sorted(maps.items(), key=lambda entry: -entry[1]["hit"]["value"]):
        asked = "pearson" in map_
        rows.append(
            [
                name,
                estimate(map_["hit"], 0, 100),
                number(100 * map_["hit_shuffled"]["value"], 0),
                estimate(map_["mass"], 0, 100),
                number(100 * map_["hit_other"]["value"], 0),
                estimate(map_["pearson"]) if asked and name != "occlusion" else "",
                *(areas(name) if asked else ["", ""]),
            ]
        )
    chance = [number(100 * study["chance"][name]["value"], 0) for name in ("hit", "mass", "hit_other")]
    agrees = estimate(study["maps"]["occlusion"]["pearson_shuffled"])
    rows.append(["*the box itself*", *[""] * 5, *areas("the box itself")])
    rows.append(["*shuffled map; chance*", chance[0], "", chance[1], chance[2], agrees, *areas("shuffled")])
    head = ["map", "points at it, %", "shuffled", "mass in its box, %", "points at another thing, %"]
    return table([*head, "Pearson with occlusion", "deletion", "insertion"], rows)


def seeing_heads() -> str:
    """Heads removed in the order of a ranking, and others of the same layers."""
    rows = []
    for row, found in read(SEEING)["knockout"].items():
        for count, change in found["change"].items():
            named = ", ".join(found["heads"][: int(count)]) if int(count) < 8 else "..."
            cells = (estimate(change[name]) for name in ("top", "others", "difference"))
            rows.append([row, f"{count}: {named}", *cells])
    return table(["row that ranks", "heads", "those removed", "others removed", "difference"], rows)


def seeing_objects() -> str:
    """Boxes of the thing that was asked for, from several maps."""
    rows = [
        [
            name,
            number(found["threshold"], 1) if "threshold" in found else "",
            estimate(found["overlap"]),
            *(estimate(found[kind], 0, 100) for kind in ("over 0.3", "over 0.5")),
        ]
        for name, found in read(OBJECTS)["boxes"].items()
    ]
    return table(["boxes from", "threshold", "overlap", "at least 0.3, %", "at least 0.5, %"], rows)


def seeing_described() -> str:
    """Things that the model names by itself: how many, and how many boxes are right."""
    kinds = ("named", "recall", "precision")
    rows = [
        [name, *(estimate(found[kind], 0, 100) for kind in kinds)]
        for name, found in read(OBJECTS)["described"].items()
    ]
    head = ["boxes from", "things named, %", "named and boxed, %", "boxes right, %"]
    return table(head, rows)


def seeing_words() -> str:
    """Agreement with occlusion, word by word."""
    kinds = ("pearson_tokens", "spearman_tokens", "pearson_pooled", "spearman_pooled")
    rows = [
        [name, *(estimate(found[kind]) for kind in kinds)] for name, found in read(SEEING)["captions"].items()
    ]
    head = ["map", "Pearson per token", "Spearman per token", "Pearson pooled", "Spearman pooled"]
    return table(head, rows)


# Speech -----------------------------------------------------------------------------------------------

_SALIENCY = {
    "spectrogram": "spectrogram, occlusion",
    "gradient": "gradient x input",
    "encoder": "encoder output, occlusion",
    "encoder_masks": "encoder output, random masks",
}
_CONTROLS = {
    "turned": "*all layers, turned*",
    "shuffled": "*all layers, shuffled*",
    "other token": "*all layers, of the token before*",
}


def speech_agreement() -> str:
    """Pearson correlation of attention with every saliency, per token."""
    rows = [
        [_CONTROLS.get(name, name), *(estimate(found[kind]["pearson_tokens"]) for kind in _SALIENCY)]
        for name, found in read(SPEECH)["agreement"].items()
    ]
    return table(["attention", *_SALIENCY.values()], rows)


def speech_other_ways() -> str:
    """The same of all layers, by ranks and pooled."""
    ways = {
        "Spearman, per token": "spearman_tokens",
        "Pearson, pooled": "pearson_pooled",
        "Spearman, pooled": "spearman_pooled",
    }
    found = read(SPEECH)["agreement"]["all layers"]
    rows = [[label, *(estimate(found[kind][way]) for kind in _SALIENCY)] for label, way in ways.items()]
    return table(["", *_SALIENCY.values()], rows)


# Retrieval heads --------------------------------------------------------------------------------------


def retrieval_found() -> str:
    """Needles found, by the length of the prompt."""
    heads = read(HEADS)
    found = [
        sum(trial["recall"] > heads["min_recall"] for trial in _trials(heads, n)) for n in heads["lengths"]
    ]
    needles, depths = len(heads["needles"]), ", ".join(map(str, heads["depths"]))
    label = f"needles found (of {needles * len(heads['depths'])}: {needles} needles, depths {depths} %)"
    head = ["tokens of the prompt", *(f"{length:,}" for length in heads["lengths"])]
    return table(head, [[label, *map(str, found)]])


def _trials(heads: Any, length: int) -> list[Any]:
    return [trial for trial in heads["trials"] if trial["length"] == length]


def retrieval_heads() -> str:
    """How many heads retrieve, and in which layers they are."""
    heads = read(HEADS)
    scores, count = heads["mean"], heads["layers"] * heads["heads"]  # heads that never copied are left out
    some, many = (sum(paper >= line for paper, _, _ in scores.values()) for line in (0.1, 0.5))
    always = sum(share == 1 for _, _, share in scores.values())
    never, layers = count - len(scores), sorted(int(name.split("-")[0]) for name in scores)
    return (
        f"Of {count} heads {some} ({100 * some / count:.1f} %) reach 0.1, the paper's line for a retrieval "
        f"head, and {many} reach 0.5; {never} ({100 * never / count:.0f} %) never copied a token of an "
        f"answer. {always} copied in each of the {heads['trials_succeeded']} successful trials. All "
        f"{len(scores)} that copied anything are in layers {layers[0]} to {layers[-1]}."
    )


def retrieval_agreement() -> str:
    """How much rankings by one needle or one length agree with all, and where the two scores part."""
    agreement = read(MASKING)["agreement"]
    needles = ", ".join(f"{value:.3f}" for value in agreement["needle"].values())
    lengths = ", ".join(f"{value:.2f} at {int(n):,}" for n, value in agreement["length"].items())
    copied = [
        (steps, trial["kinds"]) for trial in read(HEADS)["trials"] for _, steps in trial["copied"].values()
    ]
    most = max(steps / kinds for steps, kinds in copied)
    return (
        "Each needle by itself ranks the heads much as all do (correlation of its scores with the mean: "
        f"{needles}), and so does each length ({lengths}). The two scores part where an answer goes round in "
        f"circles; in one trial the released one reaches {most:.2f}."
    )


def retrieval_plain() -> str:
    """The needle score of the model without masking."""
    shares = {}
    for found in read(MASKING)["masking"].values():
        (plain,) = (figure for figure in found["figures"] if not figure["heads"])
        lengths = ", ".join(f"{length:,}" for length in found["lengths"])
        shares[f"on the {len(found['cells'])} prompts of {lengths} tokens"] = f"{plain['value']:.0f}"
    return " and ".join(f"{value} {where}" for where, value in shares.items())


def retrieval_best(count: str = "10") -> str:
    """The best heads with their scores."""
    heads = read(HEADS)
    best = sorted(heads["mean"].items(), key=lambda entry: -entry[1][0])[: int(count)]
    head = ["layer-head", *(name for name, _ in best)]
    scores = [
        [label, *(number(values[at]) for _, values in best)]
        for at, label in enumerate(("paper score", "released score"))
    ]
    return table(head, [*scores, ["active in", *(f"{100 * values[2]:.0f} %" for _, values in best)]])


def retrieval_masking() -> str:
    """The needle score without the best heads, and without others."""
    names = {"averaging while answering": "averaging while answering (as released)"}
    rows = []
    for label, found in read(MASKING)["masking"].items():
        by_count: dict[int, dict[str, Any]] = {}
        for figure in found["figures"]:
            by_count.setdefault(figure["heads"], {})[figure["kind"]] = figure
        del by_count[0]
        first = f"{names.get(label, label)}, {len(found['cells'])} prompts"
        for count, kinds in by_count.items():
            cells = (kinds["top"], kinds["random"], kinds["random"]["top_minus_random"])
            rows.append([first, str(count), *(estimate(cell, 0) for cell in cells)])
            first = ""
    return table(["masking", "heads", "retrieval heads", "other heads, 3 draws", "difference"], rows)


def retrieval_memory() -> str:
    """Peak memory of reading and answering."""
    memory = read(MASKING)["memory"]
    head = ["tokens", *(f"{row['length']:,}" for row in memory)]
    ways = {"plain": "plain_mib", "recording the strongest columns": "recording_mib"}
    return table(head, [[label, *(str(row[way]) for row in memory)] for label, way in ways.items()])
