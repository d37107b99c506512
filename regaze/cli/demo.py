"""`regaze demo`: the whole job on the bundled model, offline."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from regaze.cli import console, options, tables
from regaze.cli.heatmap import draw
from regaze.demo import scenes

#: the layer in which the demo model matches a word of the question with the patches that show it
WORD_LAYER = 0
#: the split on which a model that goes by what is usual is most often wrong
SPLIT = "adversarial"


def demo(
    output: Annotated[Path, typer.Option(help="Folder for results, answers and the heatmap.")] = Path(
        "out/demo"
    ),
    debug: options.Debug = False,
) -> None:
    """Do it all on the bundled model, offline."""
    from regaze.eval import Pope
    from regaze.eval.report import report
    from regaze.eval.run.runner import evaluate_benchmark

    task = Pope.of_demo(splits=[SPLIT])
    intervention = options.method("var", None)
    gaze = options.load("demo", "cpu", None)
    console.say(f"asking {len(task.items)} questions about the shipped scenes, plain and with VAR")
    with console.progress() as bars:
        results = evaluate_benchmark(
            gaze,
            task,
            intervention,
            output,
            model_name="demo",
            batch_size=32,
            max_new_tokens=16,
            progress=bars,
        )
    report.write(results, output)
    tables.show(results)
    item = next(item for item in task.items if item.label == "yes")
    assert item.image is not None
    scene = next(scene for scene in scenes() if scene.path == item.image)
    word = next(thing.category for thing in scene.objects if f" {thing.category} " in item.question)
    picture = output / "heatmap.png"
    answer = draw(gaze, None, item.image, task.prompt(item), picture, token=word, layers=[WORD_LAYER])
    console.say(f"asked about {item.image.name}: {item.question} {answer}")
    console.say(
        f"where the word {word!r} looked is in {picture}; results, answers and report are in {output}"
    )
