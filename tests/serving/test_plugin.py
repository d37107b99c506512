"""What the plugin does to processes and requests that it cannot, or need not, act on."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from regaze.errors import InputError, RegazeError
from regaze.serving import plugin
from regaze.serving.frontend.admission import Admission
from regaze.serving.frontend.hooks import admitting
from regaze.serving.worker.hooks import attaching

pytestmark = pytest.mark.vllm


class Cache:
    def __init__(self) -> None:
        self.gone: list[str] = []

    def invalidate(self, name: str) -> None:
        self.gone.append(name)


def request(**extra: Any) -> Any:
    features = [SimpleNamespace(mm_hash=f"{data}", data=data) for data in ("sent", None)]
    params = SimpleNamespace(extra_args=extra or None, max_tokens=4, n=1)
    return SimpleNamespace(sampling_params=params, mm_features=features, cache_salt=None)


def processor() -> Any:
    """In the place of vLLM's `InputProcessor`."""
    renderer = SimpleNamespace(mm_processor_cache=Cache())
    return SimpleNamespace(vllm_config=None, renderer=renderer)


def admit(given: Any, at: Any) -> Any:
    return admitting(lambda self, one: one)(at, given)


@pytest.mark.parametrize("error", [TypeError("odd"), OSError("no disk"), ImportError("no module")])
def test_any_error_of_admission_is_that_of_its_request(monkeypatch, error):
    from vllm.exceptions import VLLMValidationError

    def fails(self: Any, given: Any) -> None:
        raise error

    monkeypatch.setattr(Admission, "admit", fails)
    at = processor()
    with pytest.raises(VLLMValidationError, match=rf"{type(error).__name__}: {error}.*plain model"):
        admit(request(regaze="var"), at)
    assert at.renderer.mm_processor_cache.gone == ["sent"]  # the other one the engine has


def test_salts_of_edited_requests_are_refused_from_plain_ones():
    plain = request()
    assert admit(plain, processor()) is plain
    plain.cache_salt = "regaze-0"
    with pytest.raises(InputError, match="choose another"):
        admit(plain, processor())


@pytest.fixture
def unwrapped(monkeypatch):
    """vLLM's classes as they are, put back when the test ends."""
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.engine.input_processor import InputProcessor

    for owner, name in ((InputProcessor, "process_inputs"), (Scheduler, "update_from_output")):
        method = owner.__dict__[name]
        monkeypatch.setattr(owner, name, getattr(method, "__wrapped__", method))
    return InputProcessor


def test_a_vllm_with_other_insides_starts_without_regaze(monkeypatch, unwrapped, caplog):
    from vllm.v1.core.sched.scheduler import Scheduler

    monkeypatch.delattr(Scheduler, "update_from_output")
    plain = SimpleNamespace(sampling_params=SimpleNamespace(extra_args=None))
    edited = SimpleNamespace(sampling_params=SimpleNamespace(extra_args={"regaze": "var"}))
    monkeypatch.setattr(unwrapped, "process_inputs", lambda self, one: one)
    plugin.register()
    assert "Scheduler has no update_from_output" in caplog.text
    assert unwrapped.process_inputs(None, plain) is plain
    with pytest.raises(RegazeError, match="not as regaze knows it"):
        unwrapped.process_inputs(None, edited)


def test_a_vllm_without_any_of_it_starts_too(monkeypatch, caplog):
    monkeypatch.setattr(plugin, "check_release", lambda: None)
    for name in ("vllm.v1.attention.backends.registry", "vllm.v1.engine.input_processor"):
        monkeypatch.setitem(__import__("sys").modules, name, None)
    plugin.register()
    assert "answered without" in caplog.text


def runner(*names: str) -> Any:
    """Has layers with these names whose attention regaze adds to."""

    class Impl:
        edits = None
        number = -1
        num_heads = 6

    class Layer:
        def __init__(self) -> None:
            self.impl = Impl()

    layers = {name: Layer() for name in names}
    compilation = SimpleNamespace(static_forward_context=layers, mode=None)
    return SimpleNamespace(
        vllm_config=SimpleNamespace(additional_config={}, compilation_config=compilation),
        model_config=SimpleNamespace(),
        get_model=lambda: None,
    )


@pytest.mark.parametrize("given", [runner(), runner("layers.attn"), runner("blocks.0.layers.1.attn")])
def test_a_model_with_other_layers_is_loaded(given):
    """No layers of regaze, a name without a number, and one with two."""
    assert attaching(lambda self: "loaded")(given) == "loaded"
    assert "not as regaze knows it" in given.__dict__["_regaze_edits"].obstacle


def test_a_last_norm_that_is_not_found_is_no_matter_of_other_methods(monkeypatch):
    from regaze.serving.worker import attachment, layer_logits

    monkeypatch.setattr(attachment, "own_heads", lambda count: None)
    monkeypatch.setattr(attachment, "watch_stream", lambda *given: True)
    monkeypatch.setattr(layer_logits, "FINAL_NORMS", ("no_such_norm",))
    given = runner("layers.0.attn")
    given.get_model = lambda: model_with(given, "layers.0.attn")
    assert attaching(lambda self: "loaded")(given) == "loaded"
    edits = given.__dict__["_regaze_edits"]
    assert (edits.obstacle, edits.shows_hidden, edits.layer_logits) == ("", True, None)


def model_with(given: Any, name: str) -> Any:
    """A model whose attention layers are those of the runner."""
    layers = given.vllm_config.compilation_config.static_forward_context
    return SimpleNamespace(named_modules=lambda: [(name, layers[name])], get_submodule=lambda name: given)
