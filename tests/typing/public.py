"""What users write, and the types that it has: checked by `make lint`, never run."""

from __future__ import annotations

from typing import Any

import pandas
from matplotlib.figure import Figure
from torch import Tensor
from typing_extensions import assert_type

import regaze
from regaze import VAR, VCD, Gaze, HeadKnockout, Record, Role, TokenMap
from regaze.demo import Scene, scenes
from regaze.eval import Pope, RunResults, evaluate_benchmark, load_results
from regaze.interventions import CARVE, DoLa, Method, create_method, list_methods
from regaze.toolkit import Trace, analysis, plot, viewer
from regaze.toolkit.model.block import Block

model, processor = regaze.load("demo", revision="main")
gaze = regaze.wrap(model, processor)
assert_type(gaze, Gaze)
assert_type(model.generate(max_new_tokens=2), Any)
assert_type(gaze.model.generate(max_new_tokens=2), Any)

scene = scenes()[0]
assert_type(scene, Scene)
image = scene.image()
assert_type(gaze.ask(image, "What?"), list[str])
assert_type(gaze.ask(["a.png", None], ["What?", "Why?"], method=CARVE()), list[str])
assert_type(gaze.tokens(gaze.inputs([image], ["What?"])), TokenMap)

# Blocks give what is behind `as`; methods take their parameters by name, and lists where they keep tuples.
assert_type(regaze.VAR(rho=0.5), VAR)
assert_type(gaze.using(VAR(), VCD(alpha=0.5)), Block[Gaze])
with gaze.using(HeadKnockout(heads=[(0, 0), (0, 3)]), DoLa(layers=[0, 2])) as same:
    assert_type(same, Gaze)
with gaze.recording(slices="image", rows="text") as record:
    gaze.ask([image], ["What?"])
assert_type(record, Record)
assert_type(record[0], Trace)
assert_type(record[:1], list[Trace])
assert_type(record[0].masses, Tensor | None)
assert_type(record[0].require("masses")[..., Role.IMAGE], Tensor)
assert_type(Record.load("record.safetensors").to_dataframe(), pandas.DataFrame)

assert_type(plot.heatmap(record, image, token="dog", layers=[0]), Figure)
assert_type(plot.role_masses(record, over="steps"), Figure)
flow = analysis.role_flow(record)
assert_type(flow, analysis.RoleFlow)
assert_type(flow.by_layer(), Tensor)
assert_type(viewer.record_page(record, images=[image]), viewer.Page)
assert_type(regaze.toolkit.viewer.answer_page(gaze, image, "What?", VAR()), viewer.Page)

results = evaluate_benchmark(gaze, Pope.of_demo(limit=4), VAR(), "out", model_name="demo", max_new_tokens=4)
assert_type(results, RunResults)
assert_type(load_results("out").to_dataframe(), pandas.DataFrame)
assert_type(list_methods(), list[str])
assert_type(create_method("var", rho=0.5), Method)

# What is wrong is found before it runs: an ignored error that is none is an error itself.
VAR(rh=0.5)  # pyright: ignore[reportCallIssue]
VAR(rho="much")  # pyright: ignore[reportArgumentType]
gaze.using(VAR)  # pyright: ignore[reportArgumentType]
gaze.using(CARVE())  # pyright: ignore[reportArgumentType]
gaze.recording(slices="pictures")  # pyright: ignore[reportArgumentType]
gaze.recording(slice="image")  # pyright: ignore[reportCallIssue]
plot.role_masses(record, over="heads")  # pyright: ignore[reportArgumentType]
print(regaze.VARR)  # pyright: ignore[reportAttributeAccessIssue]
