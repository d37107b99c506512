"""The workflow of `regaze demo`: a method on each of two benchmarks, a heatmap, a page to click through."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from regaze.cli import console, interrupt, models, tables
from regaze.cli.pictures import draw_heatmap
from regaze.demo import scenes
from regaze.eval import Item, Pope, evaluate_benchmark
from regaze.eval.benchmarks.chair.benchmark import Chair
from regaze.eval.report.report import write_report
from regaze.eval.run.answers import read_answers
from regaze.interventions import SPARC, VAR
from regaze.toolkit import Gaze
from regaze.toolkit.viewer import answer_page
from regaze.visible import visible

#: The layer in which the demo model matches a word of the question with the patches that show it.
WORD_LAYER = 0
#: How the captions' table is read.
READING = """CHAIR_s: share of captions that name something absent (CHAIR_i: of names): less
is better. Recall: share of the things there that are named: more is better.
Confounds: what changed along, and may be all there is to a gain."""
#: The split on which a model that follows co-occurrence is wrong most often.
SPLIT = "adversarial"


def run(output: Path) -> None:
    """Ask, score, report and draw: files go into the folder `output`, what they show to the terminal."""
    interrupt.current.advice = visible(f"; what is done is in {output}, and the same command continues", "")
    gaze = models.load_model("demo", "cpu", None)
    questions, captions = Pope.of_demo(splits=[SPLIT]), Chair.of_demo()
    tables.show_line(_evaluate(gaze, questions, VAR(), output / "yes-no"))
    console.info("(var redistributes attention sinks, of which so small a model has hardly any)")
    tables.show_leading(_evaluate(gaze, captions, SPARC(), output / "captions"))
    console.stdout().print(f"{READING}\n{tables.SHARES_NOTE}\n{tables.METHOD_NOTE}", soft_wrap=True)
    heatmap = _draw_word(gaze, questions, output / "heatmap.png")
    page = _write_page(gaze, captions, _mended(captions, output / "captions"), output / "view.html")
    names = "report.html, results.json, answers.jsonl"
    console.info(f"reports, figures and all answers: {output}/yes-no and {output}/captions ({names})")
    console.info(heatmap)
    console.done(page)


def _evaluate(gaze: Gaze, benchmark: Any, method: Any, folder: Path) -> dict[str, Any]:
    """The results of a benchmark, plain and under a method; reports lie in `folder`."""
    console.info(
        f"asking {len(benchmark.items)} questions of {benchmark.about.title}, plain and with {method.name}"
    )
    with console.progress() as progress:
        results = evaluate_benchmark(
            gaze,
            benchmark,
            method,
            folder,
            model_name="demo",
            batch_size=32,
            max_new_tokens=16,
            progress=progress,
        )
    write_report(results, folder)
    return results


def _draw_word(gaze: Gaze, questions: Pope, path: Path) -> str:
    """Draw where the thing that a question asks for is looked up; returns what the picture shows."""
    item = next(item for item in questions.items if item.label == "yes")
    assert item.image is not None
    scene = next(scene for scene in scenes() if scene.path == item.image)
    word = next(thing.category for thing in scene.objects if f" {thing.category} " in item.question)
    draw_heatmap(gaze, None, item.image, questions.prompt(item), path, token=word, layers=[WORD_LAYER])
    return f"where {word!r} of {item.question!r} looked: {path}"


def _mended(captions: Chair, folder: Path) -> Item:
    """The first image whose plain caption names what is not there, and whose edited one does not.

    Without one it is the first of all.
    """
    answers, scorer = read_answers(folder)[captions.name], captions.scorers()[0]
    for item in captions.items:
        plain, edited = answers[item.key].values()
        right = scorer.correct(scorer.count(captions.references([item, item]), [plain, edited]))
        if right is not None and not right[0] and right[1]:
            return item
    return captions.items[0]


def _write_page(gaze: Gaze, captions: Chair, item: Item, path: Path) -> str:
    """Write the page of the plain and the edited model that describe an image; returns what it shows."""
    length = item.max_new_tokens or captions.max_new_tokens
    page = answer_page(gaze, item.images, captions.prompt(item), SPARC(), max_new_tokens=length, model="demo")
    page.save(path)
    assert item.image is not None
    return f"each word of {item.image.name}'s caption, plain and edited, to click through: {path}"
