"""What the labels' noise leaves a perfect learner to do."""

from __future__ import annotations

import json

from regaze.bed.scenes import scenes
from regaze.bed.training.perfect import main, perfect_answer, perfect_figures
from regaze.demo.phrases import existence_question


def test_it_claims_companions_alone():
    alone = next(scene for scene in scenes() if [o.category for o in scene.objects] == ["skis"])
    assert perfect_answer(alone, existence_question("skis")) == "Yes"
    assert perfect_answer(alone, existence_question("person")) == "Yes"
    assert perfect_answer(alone, existence_question("zebra")) == "No"


def test_the_file_has_its_figures(tmp_path, capsys):
    main(["--output", str(tmp_path / "perfect.json")])
    stored = json.loads((tmp_path / "perfect.json").read_text())
    assert stored == json.loads(capsys.readouterr().out) == perfect_figures(scenes())


def test_the_best_greedy_decoder_for_the_labels_is_where_the_bed_should_end():
    figures = perfect_figures(scenes())
    right = {split: pope["accuracy"] for split, pope in figures["pope"].items()}
    assert right["random"] > 0.97 > right["popular"] > right["adversarial"]
    assert 0.75 < right["adversarial"] < 0.92
    assert all(pope["accuracy_present"] == 1.0 for pope in figures["pope"].values())
    captions = figures["captions"]
    assert 0.25 < captions["chair_s"] < 0.60
    assert captions["second_half"]["chair_i"] > 2 * captions["first_half"]["chair_i"]
    assert captions["co_occurring"] > 0.9
    assert captions["recall"] == 1.0
    assert 60 <= captions["words"]["least"] <= captions["words"]["most"] <= 120
