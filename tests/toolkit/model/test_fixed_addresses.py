"""Edited and recorded decode steps at addresses that stay, as a captured graph needs them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from acting_methods import INSIDE, acting
from models import compile_decoding, llava_processor, logits_of, picture, tiny_llava
from pretended_graphs import PretendedGraphs
from torch import Tensor, nn

import regaze
from regaze import HeadKnockout
from regaze.interventions.facts import ATTENTION
from regaze.kernels import AttentionEdit, BoundEdit, RowSelection
from regaze.toolkit.model.callback import Callback, plans_ahead
from regaze.toolkit.model.context import Context
from regaze.toolkit.model.hook import hook_of
from regaze.toolkit.model.layer_plan import LayerPlan, plan_layer, rewritten

TOKENS = 6
CPU = torch.device("cpu")
RECORDINGS = {
    "masses": {},
    "everything": {"entropy": True, "top1": True, "lse": True, "slices": "all"},
    "edited": {"masses": False, "slices": "image", "edited": True},
}


KNOCK = HeadKnockout(heads=((1, 1), (0, 2)))
METHODS = {name: acting(name) for name in INSIDE if acting(name).facts.graphs in ("captured", "compiled")}
#: Their edits are known in the layer only: of what an earlier one has just measured, or of every new key.
ASKED_IN_LAYERS = {name for name, method in METHODS.items() if method.facts.graphs == "compiled"}
#: In their decode steps attention is as it was.
WITHOUT_PLANS = {
    name
    for name, method in METHODS.items()
    if "answer" not in method.facts.when or not {*method.facts.edits} & {*ATTENTION}
}


def ways() -> Iterator[Any]:
    """Methods, recordings, and a recording of a method, as functions that open their blocks."""
    for name, method in METHODS.items():
        if name not in ASKED_IN_LAYERS:
            yield pytest.param([method], None, id=name)
    for name, options in RECORDINGS.items():
        yield pytest.param([], options, id=f"recording-{name}")
    yield pytest.param([METHODS["sparc"], KNOCK], {}, id="sparc-knockout-recording")


@pytest.fixture(autouse=True)
def _as_on_a_gpu(monkeypatch):
    """A pretended graph holds operations of torch, as a captured one holds those of a GPU."""
    monkeypatch.setenv("REGAZE_BACKEND", "torch")


@pytest.fixture(scope="module")
def inputs(gaze):
    encoded = gaze.inputs([picture(1), picture(2)], ["Is there a dog in the image?", "What is this?"])
    return {**encoded, "cache_implementation": "static"}


@pytest.fixture(scope="module")
def graphs():
    torch._dynamo.reset()
    yield PretendedGraphs()
    torch._dynamo.reset()


@pytest.fixture(scope="module")
def captured(graphs):
    model = tiny_llava()
    compile_decoding(model, graphs)
    return regaze.wrap(model, llava_processor())


def run(
    gaze: regaze.Gaze, inputs: Any, methods: Any, options: Any, tokens: int = TOKENS
) -> tuple[Tensor, Any]:
    with ExitStack() as blocks:
        blocks.enter_context(gaze.using(*methods))
        record = None if options is None else blocks.enter_context(gaze.recording(**options))
        logits = logits_of(gaze.model, inputs, tokens)
    return logits, None if record is None else record[0]


@pytest.mark.parametrize(("methods", "options"), [*ways()])
def test_a_captured_step_goes_on_without_python(methods, options, gaze, captured, graphs, inputs):
    """From the third step on its operations run again, as they were captured in the second."""
    eager, recorded = run(gaze, inputs, methods, options)
    graphs.forget()
    logits, record = run(captured, inputs, methods, options)
    assert graphs.replays == TOKENS - 3, (
        "the prompt, a step as it is, one that is captured, and its repetitions"
    )
    assert torch.equal(logits, eager)
    for name in ("masses", "entropy", "top_weight", "top_column", "lse", "slices", "row_step"):
        want = getattr(recorded, name, None)
        assert want is None or torch.equal(getattr(record, name), want), name


def test_methods_that_have_to_be_asked_in_layers():
    assert {name for name, method in METHODS.items() if not plans_ahead(method)} == ASKED_IN_LAYERS


class Watching(Callback):
    """Addresses of all tensors of all plans, in every step."""

    def __init__(self, model: Any):
        self.model = model
        self.steps: list[dict[str, int]] = []

    def combine_logits(self, context):
        dispatcher = hook_of(self.model)._attention
        (plans,) = dispatcher._generations.values()
        known = plans.fixed or {site: known.plan for site, known in plans.newest.items()}
        if context.step:
            self.steps.append(dict(addresses(known, "plans", set())))
        return None


def addresses(x: Any, path: str, seen: set[int]) -> Iterator[tuple[str, int]]:
    """The tensors that can be reached from an object, by the way to them."""
    if id(x) in seen or isinstance(x, (Callback, Context, nn.Module)):
        return
    seen.add(id(x))
    if isinstance(x, Tensor):
        yield path, x.data_ptr()
    elif isinstance(x, dict):
        for key, part in x.items():
            yield from addresses(part, f"{path}[{key}]", seen)
    elif isinstance(x, (list, tuple)):
        for number, part in enumerate(x):
            yield from addresses(part, f"{path}[{number}]", seen)
    elif isinstance(x, BoundEdit):
        yield from addresses(x.edit, f"{path}.edit", seen)
    elif type(x).__module__.startswith("regaze") and hasattr(x, "__dict__"):
        yield from addresses(vars(x), path, seen)


@pytest.mark.parametrize(("methods", "options"), [way for way in ways() if way.id not in WITHOUT_PLANS])
def test_no_address_of_a_plan_changes(methods, options, gaze, inputs):
    watching = Watching(gaze.model)
    run(gaze, inputs, [*methods, watching], options, tokens=5)
    first, *later = watching.steps[1:]  # SPARC edits nothing in its first step
    assert first
    assert len(later) == 2
    for step in later:
        assert first.items() <= step.items(), "the first step makes what it needs, and later ones no other"


def test_a_plan_takes_other_numbers_where_its_own_are():
    class Owner(Callback):
        pass

    owner = Owner()

    def planned(value: float, edit: AttentionEdit | None = None) -> LayerPlan:
        edit = AttentionEdit(value_gain=torch.full((1, 1, 3), value)) if edit is None else edit
        plan = plan_layer([owner], [edit], CPU)
        assert plan is not None
        return plan

    given = planned(2.0)
    plan = rewritten(None, given)
    columns = plan.edit.edit.columns("value_gain", 9)
    assert rewritten(plan, planned(3.0)) is plan
    assert columns[0, 0].tolist() == [3.0] * 3 + [1.0] * 6
    assert given.edit.edit.value_gain.unique().item() == 2.0, "what a method returned stays its own"
    wider = planned(0.0, AttentionEdit(value_gain=torch.ones(1, 2, 3)))
    rows = planned(0.0, given.edit.edit.replace(rows=RowSelection(torch.tensor([0]))))
    for other in (wider, rows, planned(0.0, AttentionEdit(bias=torch.ones(1, 1, 3)))):
        assert rewritten(plan, other) is not plan
    assert rewritten(plan, None) is None
    assert columns[0, 0].tolist() == [3.0] * 3 + [1.0] * 6, "nothing is written where the parts differ"


def test_plans_ahead_of_a_layer_are_asked_for_before_the_forward(gaze, inputs):
    order: list[str] = []

    class Ahead(Callback):
        plans_ahead = True

        def on_step(self, context, input_ids):
            order.append("step")

        def edit(self, layer, step, context):
            order.append(f"edit {layer}")
            gain = torch.full((1, context.num_heads), 1.0 + 0.1 * step)
            return AttentionEdit(head_gain=gain)

    class Late(Ahead):
        def edit(self, layer, step, context):
            return super().edit(layer, step, context)

    def layer_ran(*_: Any) -> None:
        order.append("layer")

    layers = [
        m for name, m in gaze.model.named_modules() if name.endswith("self_attn") and "language" in name
    ]
    handles = [m.register_forward_pre_hook(layer_ran) for m in layers]
    found, logits = {}, {}
    for callback in (Ahead(), Late()):
        order.clear()
        with gaze.using(callback):
            logits[type(callback)] = logits_of(gaze.model, inputs, 3)
        last = len(order) - order[::-1].index("step")
        found[type(callback)] = order[last:]
    for handle in handles:
        handle.remove()
    edits = [f"edit {number}" for number in range(len(layers))]
    assert found[Ahead] == [*edits, *["layer"] * len(layers)]
    assert found[Late] == [part for edit in edits for part in ("layer", edit)]
    assert torch.equal(logits[Ahead], logits[Late])


@pytest.mark.gpu
def test_cuda_graphs_give_the_tokens_of_eager_code(inputs):
    """Torch captures what lies between the layers' attention."""
    moved = {name: x.cuda() if isinstance(x, Tensor) else x for name, x in inputs.items()}
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    found: dict[str, list[Tensor]] = {}
    for kind in ("eager", "compiled"):
        model = tiny_llava().cuda()
        wrapped = regaze.wrap(model, llava_processor())
        if kind == "compiled":
            compile_decoding(model, mode="reduce-overhead")
        found[kind] = []
        for name in ("knockout", "sparc", "var"):
            with wrapped.using(METHODS[name]):
                found[kind].append(model.generate(**moved, **options))
    for eager, compiled in zip(found["eager"], found["compiled"], strict=True):
        assert torch.equal(eager, compiled)
