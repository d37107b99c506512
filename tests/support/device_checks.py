"""What must hold on an accelerator: the CPU's results, no mixture of devices, no wait at layers or steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from models import llava_processor, picture, tiny_llava
from pretended_device import Accelerator

import regaze

IMAGES = [[picture(1)], [picture(2)]]
QUESTIONS = ["Is there a dog in the image?", "What is there in the image?"]
#: The vision tower and the first three layers on one device, the other layers and the final norm on another.
_TEXT = "model.language_model"
DEVICE_MAP: dict[str, int | str] = {
    "model.vision_tower": 0,
    "model.multi_modal_projector": 0,
    f"{_TEXT}.embed_tokens": 0,
    f"{_TEXT}.rotary_emb": 0,
    **{f"{_TEXT}.layers.{layer}": layer // 3 for layer in range(6)},
    f"{_TEXT}.norm": 1,
    "lm_head": 0,
}


class Placed(NamedTuple):
    """One random LLaVA several times: on the CPU, and on pretended devices."""

    cpu: regaze.Gaze
    others: tuple[tuple[str, Accelerator, regaze.Gaze], ...]

    @classmethod
    def llava(cls, **device_maps: dict[str, int | str] | None) -> Placed:
        """On devices as these maps say; None: all on one."""
        others = []
        for where, device_map in device_maps.items():
            accelerator, model = Accelerator(), tiny_llava()
            accelerator.place(model, device_map)
            others.append((where, accelerator, regaze.wrap(model, llava_processor())))
        return cls(regaze.wrap(tiny_llava(), llava_processor()), tuple(others))

    def check(self, run: Callable[[regaze.Gaze], Any], *reads: str, waits: bool = False) -> None:
        """`run` gives the same on all of them, without making the host wait again and again.

        A line of regaze may make it wait twice on a device; from the second decode step on it may not even
        copy to a device.

        Args:
            run: returns what can be compared: a tensor, or several in tuples, or something else with ==.
            reads: parts of lines that read what is decided by, and may wait.
            waits: wherever it waits is right.
        """
        want = run(self.cpu)
        for where, accelerator, gaze in self.others:
            accelerator.forget()
            with accelerator:
                got = _on_cpu(run(gaze))
            _assert_equal(got, want, f"on {where}")
            found = accelerator.repeated() | accelerator.at_steps()
            wrong = [f"{n} x {line}" for line, n in found.items() if not any(each in line for each in reads)]
            if wrong and not waits:
                raise AssertionError("\n".join([f"the host waits, on {where}:", *wrong]))


def _on_cpu(result: Any) -> Any:
    if isinstance(result, torch.Tensor):
        return result.cpu()
    return tuple(map(_on_cpu, result)) if isinstance(result, tuple) else result


def _assert_equal(got: Any, want: Any, where: str) -> None:
    if isinstance(want, torch.Tensor):
        close = {"rtol": 1e-4, "atol": 1e-4, "equal_nan": True}
        torch.testing.assert_close(got, want, **close, msg=lambda text: f"{where}: {text}")
    elif isinstance(want, tuple):
        for each_got, each_want in zip(got, want, strict=True):
            _assert_equal(each_got, each_want, where)
    elif got != want:
        raise AssertionError(f"{where}: {got!r} instead of {want!r}")


def logits(gaze: regaze.Gaze, steps: int = 5, **options: Any) -> torch.Tensor:
    """[steps, B, V] greedy logits, generated in inference mode as `ask` does."""
    with torch.inference_mode():
        out: Any = gaze.model.generate(
            **gaze.inputs(IMAGES, QUESTIONS),
            **{"max_new_tokens": steps, "do_sample": False, "eos_token_id": None, **options},
            output_logits=True,
            return_dict_in_generate=True,
        )
        return torch.stack(out.logits)
