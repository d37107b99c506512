"""The workflow of `regaze demo`: evaluate a method, report, and draw where a word looked."""

from __future__ import annotations

from pathlib import Path

from regaze.cli import console, interrupt, models, tables
from regaze.cli.pictures import draw_heatmap
from regaze.demo import scenes
from regaze.eval import Pope, evaluate_benchmark
from regaze.eval.report.report import write_report
from regaze.interventions import VAR
from regaze.visible import visible

#: The layer in which the demo model matches a word of the question with the patches that show it.
WORD_LAYER = 0
#: The split on which a model that follows co-occurrence is wrong most often.
SPLIT = "adversarial"


def run(output: Path) -> None:
    """Ask, score, report and draw; results go into the folder `output`, a table to the terminal."""
    interrupt.current.advice = visible(f"; what is done is in {output}, and the same command continues", "")
    task = Pope.of_demo(splits=[SPLIT])
    gaze = models.load_model("demo", "cpu", None)
    console.info(f"asking {len(task.items)} questions about the shipped scenes, plain and with VAR")
    with console.progress() as progress:
        results = evaluate_benchmark(
            gaze,
            task,
            VAR(),
            output,
            model_name="demo",
            batch_size=32,
            max_new_tokens=16,
            progress=progress,
        )
    write_report(results, output)
    tables.show(results)
    item = next(item for item in task.items if item.label == "yes")
    assert item.image is not None
    scene = next(scene for scene in scenes() if scene.path == item.image)
    word = next(thing.category for thing in scene.objects if f" {thing.category} " in item.question)
    picture = output / "heatmap.png"
    answer = draw_heatmap(gaze, None, item.image, task.prompt(item), picture, token=word, layers=[WORD_LAYER])
    console.info(f"question about {item.image.name}: {item.question} {answer}")
    console.done(
        f"where the word {word!r} looked is in {picture}; results, answers and report are in {output}"
    )
