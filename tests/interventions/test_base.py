"""The registry, JSON round trips, and head knock-out."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint
from pkgutil import resolve_name
from typing import ClassVar

import pytest
import torch
from models import logits_of, picture

import regaze
from regaze import VAR, HeadKnockout
from regaze.errors import BadParameterError, UnknownMethodError, UnknownParameterError
from regaze.interventions import Intervention, create_method, load_methods, method_from_dict, registry
from regaze.interventions.registry import BUILT_IN


@pytest.mark.parametrize(
    "intervention",
    [
        VAR(rho=0.8, sink_dimensions=(1, 2)),
        VAR(as_released=True),
        HeadKnockout(heads=((3, 1), (0, 2)), mode="uniform"),
    ],
)
def test_json_round_trip(intervention):
    again = method_from_dict(json.loads(json.dumps(intervention.to_dict())))
    assert again == intervention
    assert hash(again) == hash(intervention)


def test_every_method_documents_itself():
    from dataclasses import fields

    for name, method in load_methods().items():
        assert method.name == name == method.__name__.lower().removeprefix("head")
        assert method.summary
        assert method.source
        assert all(f.metadata.get("help") for f in fields(method))


def test_listing_names_imports_no_method():
    code = "import sys; from regaze.interventions.registry import list_methods; names = list_methods();"
    code += "print(*names); sys.exit('regaze.interventions.vcd' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    assert set(BUILT_IN) <= set(out.stdout.split())


def test_every_class_is_at_the_top_level():
    for path in (*registry.BUILT_IN.values(), *registry.VISION_TRANSFORMS.values()):
        name = path.partition(":")[2]
        assert getattr(regaze, name) is getattr(regaze.interventions, name) is resolve_name(path)


def test_unknown_names_say_what_there_is():
    with pytest.raises(UnknownMethodError, match=r"'varr'; did you mean 'var'"):
        create_method("varr")
    with pytest.raises(UnknownParameterError, match=r"no parameter 'rhoo'; did you mean 'rho'\? It has"):
        create_method("var", rhoo=1)


@dataclass(frozen=True)
class Mine(Intervention):
    """What another package could announce."""

    name: ClassVar[str] = "mine"
    strength: float = field(default=1.0, metadata={"help": "how much"})

    def __post_init__(self) -> None:
        object.__setattr__(self, "strength", float(self.strength))


@dataclass(frozen=True)
class Unreadable(Intervention):
    name: ClassVar[str] = "bad"
    strength: NoSuchType = 1.0  # noqa: F821


@pytest.fixture
def announce(monkeypatch):
    """Pretend that packages announce name=value."""

    def announced(**values: str) -> None:
        entries = {n: EntryPoint(n, v, registry.ENTRY_POINT_GROUP) for n, v in values.items()}
        monkeypatch.setattr(registry, "announced", lambda: entries)

    return announced


def test_entry_points_join_but_do_not_replace(announce):
    announce(mine=f"{__name__}:Mine", var=f"{__name__}:Mine")
    assert load_methods()["mine"] is Mine
    assert load_methods()["var"] is VAR
    assert registry.broken_methods() == []
    assert create_method("mine", strength=2.0) == Mine(2.0)
    for wrong in ("much", [1]):  # ValueError and TypeError of the class's own check
        with pytest.raises(BadParameterError, match=r"'mine': .*float"):
            create_method("mine", strength=wrong)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            "no_such_package:Method",
            r"'bad' \(no_such_package:Method\) cannot be imported: ModuleNotFoundError",
        ),
        (f"{__name__}:NoSuchClass", "cannot be imported: AttributeError"),
        ("json:dumps", "is not a subclass of regaze.interventions.Intervention"),
        (f"{__name__}:Mine", "calls itself 'mine'; both names must be the same"),
        ("leaving:Method", "cannot be imported: SystemExit: 3$"),
        ("not a name", "cannot be imported: "),
        (f"{__name__}:Unreadable", "has parameters that cannot be read: NameError"),
    ],
)
def test_an_entry_point_that_fails_breaks_only_itself(announce, tmp_path, monkeypatch, value, message):
    (tmp_path / "leaving.py").write_text("import sys\nsys.exit(3)\n")
    monkeypatch.syspath_prepend(tmp_path)
    announce(bad=value, mine=f"{__name__}:Mine")
    assert list(load_methods()) == sorted(["mine", *BUILT_IN])
    assert create_method("mine") == Mine()
    (reason,) = registry.broken_methods()
    assert re.search(message, reason)
    with pytest.raises(UnknownMethodError, match=message):
        create_method("bad")


class Failing(Mine):
    name = "failing"

    def __post_init__(self) -> None:
        sys.exit("no licence\nkey")


class Undecided(Mine):
    name = "undecided"

    @property
    def is_identity(self) -> bool:
        raise RuntimeError("who knows")


@pytest.mark.parametrize(
    ("cls", "reason"), [(Failing, "SystemExit: no licence key"), (Undecided, "who knows")]
)
def test_a_method_that_cannot_be_made_is_named_and_left_out_of_all(announce, cls, reason):
    announce(**{cls.name: f"{__name__}:{cls.__name__}", "mine": f"{__name__}:Mine"})
    reasons: list[str] = []
    methods = registry.default_methods(reasons.append)
    assert "mine" in methods
    assert cls.name not in methods
    message = rf"method '{cls.name}' \(.*\) cannot be made: .*{reason}$"
    assert len(reasons) == 1
    assert re.search(message, reasons[0])
    for make in (lambda: create_method(cls.name), lambda: method_from_dict({"method": cls.name})):
        with pytest.raises(BadParameterError, match=message):
            make()


def test_an_interrupt_of_an_import_passes_through(announce, tmp_path, monkeypatch):
    (tmp_path / "interrupted.py").write_text("raise KeyboardInterrupt\n")
    monkeypatch.syspath_prepend(tmp_path)
    announce(bad="interrupted:Method")
    with pytest.raises(KeyboardInterrupt):
        load_methods()


def test_installed_packages_are_searched_once_per_process(monkeypatch):
    searches: list[str] = []
    monkeypatch.setattr(registry, "entry_points", lambda group: searches.append(group) or ())
    registry.announced.cache_clear()
    for _ in range(3):
        registry.list_methods()
        with pytest.raises(UnknownMethodError):
            create_method("nobody")
    assert searches == ["regaze.interventions"]
    registry.announced.cache_clear()


@pytest.mark.parametrize("data", [{}, {"rho": 0.5}, {"method": None}, "var"])
def test_from_dict_needs_a_method(data):
    with pytest.raises(BadParameterError, match=r'expected \{"method": name'):
        method_from_dict(data)


# Knock-out
# -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def inputs(gaze):
    return gaze.inputs([picture(1), picture(2)], ["Is there a dog in the image?", "What?"])


def test_zero_equals_removing_the_head_from_the_projection(model, gaze, inputs):
    heads = ((1, 0), (1, 5), (4, 2))
    with gaze.using(HeadKnockout(heads=heads)):
        removed = logits_of(model, inputs)
    layers, size = model.model.language_model.layers, 32
    kept = {layer: layers[layer].self_attn.o_proj.weight.detach().clone() for layer, _ in heads}
    for layer, head in heads:
        layers[layer].self_attn.o_proj.weight.data[:, head * size : (head + 1) * size] = 0
    expected = logits_of(model, inputs)
    for layer, weight in kept.items():
        layers[layer].self_attn.o_proj.weight.data.copy_(weight)
    torch.testing.assert_close(removed, expected, rtol=0, atol=1e-5)


def test_uniform_averages_what_the_head_may_see(model, gaze, inputs):
    uniform = HeadKnockout(heads=((2, 3),), mode="uniform")
    wanted = {"masses": False, "slices": "all", "rows": "all", "edited": True}
    with gaze.using(uniform), gaze.recording(**wanted) as record:
        model.generate(**inputs, max_new_tokens=3, do_sample=False, eos_token_id=None)
    trace = record[0]
    for sample in range(2):
        padding = int((inputs["attention_mask"][sample] == 0).sum())
        for row, position in enumerate(trace.row_position.tolist()):
            if not trace.row_active[sample, row]:
                continue
            weights = trace.slices[2, sample, 3, row]
            expected = torch.zeros_like(weights)
            expected[padding : position + 1] = 1 / (position + 1 - padding)
            torch.testing.assert_close(weights, expected, rtol=0, atol=1e-6)


def test_no_heads_is_bit_identical(model, gaze, inputs):
    plain = logits_of(model, inputs)
    with gaze.using(HeadKnockout()):
        assert torch.equal(plain, logits_of(model, inputs))


def test_heads_that_do_not_exist(model, gaze, inputs):
    message = r"head \(6, 0\) does not exist: the model has layers 0\.\.5"
    with pytest.raises(BadParameterError, match=message), gaze.using(HeadKnockout(heads=((6, 0),))):
        model.generate(**inputs, max_new_tokens=1)
    with pytest.raises(BadParameterError, match="layer, head"):
        HeadKnockout(heads=(3, 1))
    with pytest.raises(BadParameterError, match=r"layer, head.*3\.5"):
        HeadKnockout(heads=((3.5, 1),))
    with pytest.raises(BadParameterError, match="'zero' or 'uniform'"):
        HeadKnockout(mode="half")


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("vcd", {"alpha": float("inf")}),
        ("vcd", {"alpha": "1"}),
        ("vcd", {"noise_step": 2.5}),
        ("damro", {"kept": 2.5}),
        ("carve", {"regions_kept": 1.5}),
        ("vista", {"strength": float("nan")}),
        ("pai", {"as_released": "yes"}),
    ],
)
def test_parameters_of_another_type_are_refused(name, wrong):
    with pytest.raises(BadParameterError, match=next(iter(wrong))):
        create_method(name, **wrong)
