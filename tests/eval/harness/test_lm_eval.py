"""`regaze lm-eval --model regaze`: the harness's own figures without a method, a method's with one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("lm_eval")

from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager
from models import llava_processor, tiny_llama

from regaze.errors import BadParameterError, InputError, UnknownMethodError
from regaze.eval.harness.lm_eval import RegazeLM
from regaze.interventions.registry import create_method

ITEMS = [
    {"q": "The capital of France is", "choices": ["Paris", "London", "a small green frog"], "gold": 0},
    {"q": "Two plus two equals", "choices": ["four", "seven", "ninety"], "gold": 0},
    {"q": "The sky on a clear day is", "choices": ["purple and yellow", "blue", "made of wood"], "gold": 1},
    {"q": "Cats are", "choices": ["vegetables", "numbers", "animals"], "gold": 2},
]
SHARED = """
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
doc_to_text: "{{{{q}}}}"
"""
TASKS = {
    "choose": """
task: choose
output_type: multiple_choice
doc_to_choice: choices
doc_to_target: gold
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
""",
    "say": """
task: say
output_type: generate_until
doc_to_target: "{{choices[gold]}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 6, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
""",
    "roll": """
task: roll
output_type: loglikelihood_rolling
doc_to_target: "{{q}}"
metric_list: [{metric: bits_per_byte}]
""",
}
KNOCKOUT = {"method": "knockout", "heads": [[0, 0], [0, 1], [2, 3], [3, 0]]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, monkeypatch_module) -> Path:
    """A random text model, and tasks over a local file."""
    folder = tmp_path_factory.mktemp("lm_eval")
    monkeypatch_module.setenv("HF_DATASETS_CACHE", str(folder / "cache"))
    tiny_llama(max_position_embeddings=256).save_pretrained(folder / "model")
    llava_processor().tokenizer.save_pretrained(folder / "model")
    tasks = folder / "tasks"
    tasks.mkdir()
    (folder / "items.jsonl").write_text("\n".join(map(json.dumps, ITEMS)) + "\n")
    for name, text in TASKS.items():
        (tasks / f"{name}.yaml").write_text(text + SHARED.format(file=folder / "items.jsonl"))
    return folder


@pytest.fixture(scope="module")
def monkeypatch_module():
    with pytest.MonkeyPatch.context() as patch:
        yield patch


def responses(folder, model, tasks=tuple(TASKS), pretrained=None, batch_size=3, use_cache=None, **arguments):
    """What the model answered to every request, and the harness's result."""
    result = simple_evaluate(
        model=model,
        model_args={"pretrained": str(pretrained or folder / "model"), "dtype": "float32", **arguments},
        tasks=list(tasks),
        task_manager=TaskManager(include_path=str(folder / "tasks"), include_defaults=False),
        device="cpu",
        batch_size=batch_size,
        max_batch_size=4,
        use_cache=use_cache,
        bootstrap_iters=0,
    )
    return {t: [sample["resps"] for sample in result["samples"][t]] for t in tasks}, result


def test_without_a_method_it_is_the_harness_own_model(folder):
    plain, _ = responses(folder, "hf")
    assert responses(folder, "regaze")[0] == plain
    assert responses(folder, "regaze", method="none")[0] == plain


def test_a_method_changes_all_kinds_of_requests_and_is_named_in_the_result(folder):
    plain, _ = responses(folder, "hf")
    edited, result = responses(folder, "regaze", **KNOCKOUT)
    assert all(edited[task] != plain[task] for task in TASKS)
    assert (
        result["config"]["regaze_method"] == create_method(name="knockout", heads=KNOCKOUT["heads"]).to_dict()
    )


def test_log_likelihoods_are_the_same_decoded_and_in_one_forward(folder, monkeypatch):
    """HeadKnockout treats every token alike, so both ways of scoring must agree."""
    once, _ = responses(folder, "regaze", **KNOCKOUT)
    monkeypatch.setattr(RegazeLM, "_in_one_forward", False)
    decoded, _ = responses(folder, "regaze", **KNOCKOUT)
    assert decoded["say"] == once["say"]
    for a, b in zip(decoded["choose"], once["choose"], strict=True):
        assert [r[0][1] for r in a] == [r[0][1] for r in b]
        assert [r[0][0] for r in a] == pytest.approx([r[0][0] for r in b], abs=1e-3)
    assert [r[0][0] for r in decoded["roll"]] == pytest.approx([r[0][0] for r in once["roll"]], abs=1e-2)


def test_a_method_that_mixes_logits_scores_every_choice(folder):
    plain, _ = responses(folder, "hf")
    mixed, _ = responses(folder, "regaze", method="dola", beta=0.1)
    assert mixed["choose"] != plain["choose"]
    numbers = [r[0][0] for sample in mixed["choose"] for r in sample]
    assert len(numbers) == 12
    assert all(-1e5 < number <= 0 for number in numbers)


def test_arguments_may_come_as_one_text(folder):
    text = f"pretrained={folder / 'model'},dtype=float32,method=knockout,heads=[[0,0],[2,3]]"
    lm = RegazeLM.create_from_arg_string(text, {"device": "cpu", "batch_size": 2, "max_batch_size": None})
    assert lm.method == create_method("knockout", heads=((0, 0), (2, 3)))
    assert lm.batch_size == 2


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"method": "carve"}, BadParameterError, "asks questions in its own way"),
        ({"method": "dolla"}, UnknownMethodError, "did you mean 'dola'"),
        ({"method": "knockout"}, BadParameterError, "changes nothing"),
    ],
)
def test_methods_that_cannot_work_are_refused_before_the_model_is_loaded(arguments, error, message):
    with pytest.raises(error, match=message):
        RegazeLM("no-such-model", **arguments)


def run_command(folder, *arguments):
    command = [sys.executable, "-m", "regaze", "lm-eval", "--model", "regaze", "--model_args"]
    command += [f"pretrained={folder / 'model'},dtype=float32,method=knockout,heads=[[0,0],[2,3]]"]
    command += ["--include_path", str(folder / "tasks"), "--tasks", "choose", "--device", "cpu", *arguments]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=env)


@pytest.mark.slow
def test_the_command_runs_the_harness_with_the_model(folder):
    done = run_command(folder)
    assert done.returncode == 0, done.stderr
    assert "regaze (" in done.stdout
    assert "|choose|" in done.stdout.replace(" ", "")


@pytest.mark.slow
def test_the_command_ends_with_one_line_where_the_harness_cache_is_wanted(folder):
    done = run_command(folder, "--use_cache", str(folder / "answers"))
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("regaze: error: --use_cache cannot be used with method=")


@pytest.mark.parametrize("arguments", [KNOCKOUT, {"method": "dola"}])
def test_no_answer_under_a_method_gets_into_the_harness_cache(folder, arguments):
    """Plain `hf` with the same cache must not get them."""
    cache = str(folder / f"cache-{arguments['method']}")
    with pytest.raises(InputError, match="--use_cache"):
        responses(folder, "regaze", ["choose"], use_cache=cache, **arguments)
    plain, _ = responses(folder, "hf", ["choose"])
    assert responses(folder, "hf", ["choose"], use_cache=cache)[0] == plain
    assert responses(folder, "regaze", ["choose"], use_cache=cache)[0] == plain  # without a method it is hf


def test_an_unknown_argument_is_one_line_before_the_model_is_loaded(folder):
    with pytest.raises(
        BadParameterError, match=r"unknown bta \(did you mean beta\?\); there are .*max_length"
    ):
        responses(folder, "regaze", method="dola", bta=0.1)


def test_a_search_for_a_batch_size_is_refused_where_it_would_mislead(folder):
    with pytest.raises(BadParameterError, match="batch_size=auto"):
        responses(folder, "regaze", ["choose"], batch_size="auto", method="dola")
    plain, _ = responses(folder, "hf", ["choose"], batch_size="auto")
    assert responses(folder, "regaze", ["choose"], batch_size="auto")[0] == plain
    edited, _ = responses(
        folder, "regaze", ["choose"], batch_size=4, **KNOCKOUT
    )  # what auto finds, see above
    assert responses(folder, "regaze", ["choose"], batch_size="auto", **KNOCKOUT)[0] == edited


@pytest.mark.slow
@pytest.mark.skipif("REGAZE_SMOLLM2" not in os.environ, reason="REGAZE_SMOLLM2 names no folder")
def test_on_smollm2(folder):
    """A trained model: equal to the harness's without a method, another one without some of its heads."""
    tasks, model = ("choose", "say"), os.environ["REGAZE_SMOLLM2"]
    plain, result = responses(folder, "hf", tasks, model)
    assert result["results"]["choose"]["acc,none"] >= 0.5
    assert responses(folder, "regaze", tasks, model)[0] == plain
    edited, _ = responses(folder, "regaze", tasks, model, **KNOCKOUT)
    assert edited["choose"] != plain["choose"]
    assert edited["say"] != plain["say"]
