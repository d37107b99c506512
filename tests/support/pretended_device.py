"""A pretended accelerator: its tensors lie on devices of their own, and it computes on the CPU.

It raises where an accelerator would refuse a mixture of devices, and lists copies and what else makes the
host wait: operations whose result it needs (`.item()`, `nonzero`, boolean indices). So wrong devices and
waits show without a GPU, with the line that causes them.

    accelerator = Accelerator()
    accelerator.place(model)            # or `place(model, device_map)`: parts on two devices, by accelerate
    with accelerator:
        model.generate(**inputs.to(accelerator.first))
    print(accelerator.repeated())

The tensors are wrappers around CPU tensors, on devices of a backend that torch lets a project define
("PrivateUse1"). No kernels are written for it, so attention runs in plain torch. Inference mode is torch's
own, as are gradients: on the first device, in a process whose first backward pass is within a block.
A process has one backend of that kind, and torch prefers it to others: this is not for machines that have an
accelerator.
"""

from __future__ import annotations

import linecache
import sys
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import accelerate
import torch
from torch import Tensor, nn
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel

TYPE = "pretended"
_HOST = torch.device("cpu")
#: Packages whose lines are named as the cause of a wait, the innermost one on the stack.
_NAMED = ("regaze", "transformers", "accelerate", "tests")
_aten = torch.ops.aten
#: Operations after which the host needs values, or a size that depends on values.
_READS = {
    _aten._local_scalar_dense.default,
    _aten._unique2.default,
    _aten.bincount.default,
    _aten.equal.default,
    _aten.is_nonzero.default,
    _aten.masked_select.default,
    _aten.nonzero.default,
    _aten.repeat_interleave.Tensor,
    _aten.unique_consecutive.default,
    _aten.unique_dim.default,
}
_INDEXING = {
    _aten.index.Tensor,
    _aten.index_put.default,
    _aten.index_put_.default,
    _aten._index_put_impl_.default,
}


class Contact(NamedTuple):
    """One copy, or one read by the host.

    Attributes:
        what: "copy from cpu", "copy to cpu", "copy between devices", "boolean index", or the operation.
        line: file, number and text of the line that caused it.
        device: whose tensors it was; of a copy between devices the one that it went to.
        step: 0 until the first decode step of the placed model begins, then 1, 2, ...
        waits: whether the host waits: not for copies between devices, nor to a device with `non_blocking`.
    """

    what: str
    line: str
    device: torch.device
    step: int
    waits: bool


class PretendedTensor(Tensor):
    """A tensor on a pretended device. `values`: a CPU tensor of the same shape and strides."""

    values: Tensor

    @staticmethod
    def __new__(cls, values: Tensor, device: torch.device | None = None, requires_grad: bool = False) -> Any:
        if device is None:  # accelerate makes parameters by the class of those that were there
            return nn.Parameter(values, requires_grad)
        layout = {"strides": values.stride(), "storage_offset": values.storage_offset()}
        # In inference mode a view of an ordinary tensor is an ordinary tensor.
        with torch.inference_mode(values.is_inference()):
            made: Any = Tensor._make_wrapper_subclass(
                cls, values.shape, dtype=values.dtype, device=device, **layout
            )
        made.values = values
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{func} of a pretended device outside of `with Accelerator()`")

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def __repr__(self) -> str:
        return f"{self.values!r} on {self.device}"


class Accelerator(TorchDispatchMode):
    """Two pretended devices, to be used while the block is open.

    Attributes:
        first, second: the devices.
        contacts: copies and reads since `forget` or `place`.
    """

    _open: ClassVar[list[Accelerator]] = []  # those of open blocks

    def __init__(self) -> None:
        super().__init__()
        _register_backend()
        self.first, self.second = torch.device(TYPE, 0), torch.device(TYPE, 1)
        self._lifts: list[bool] = []
        self.forget()

    def __enter__(self) -> Any:
        # So that `torch.tensor(..., device=...)` shows its copy to the device as an operation.
        self._lifts.append(torch._C._only_lift_cpu_tensors())
        torch._C._set_only_lift_cpu_tensors(True)
        Accelerator._open.append(self)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        Accelerator._open.pop()
        torch._C._set_only_lift_cpu_tensors(self._lifts.pop())

    def place(self, model: nn.Module, device_map: dict[str, int | str] | None = None) -> None:
        """Put a model on the first device, or its parts where a device map says, and follow its steps."""
        with self:
            if device_map is None:
                model.to(self.first)
                if isinstance(model, PreTrainedModel):
                    model.tie_weights()  # parameters of another class are new ones
            else:
                devices = {k: f"{TYPE}:{v}" if isinstance(v, int) else v for k, v in device_map.items()}
                accelerate.dispatch_model(model, devices, main_device=str(self.first))
        model.register_forward_pre_hook(self._begin_forward, with_kwargs=True)
        self.forget()

    def _begin_forward(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        ids = kwargs.get("input_ids")
        self._step += ids is not None and ids.shape[1] == 1

    def forget(self) -> None:
        """Start anew: no contacts and no steps so far."""
        self.contacts: list[Contact] = []
        self._step = 0

    def repeated(self, allowed: int = 2) -> Counter[str]:
        """How often a line of regaze made the host wait, where that was more than `allowed` on a device."""
        counts = Counter((c.what, c.line, c.device) for c in self._own() if c.waits)
        found: Counter[str] = Counter()
        for (what, line, _), count in counts.items():
            if count > allowed:
                found[f"{what} at {line}"] += count
        return found

    def at_steps(self) -> Counter[str]:
        """Contacts by lines of regaze from the second decode step on, also those without a wait.

        Without the last step, from which what follows it, as closing a record, cannot be told apart.
        """
        return Counter(f"{c.what} at {c.line}" for c in self._own() if 1 < c.step < self._step)

    def _own(self) -> list[Contact]:
        return [contact for contact in self.contacts if contact.line.startswith("regaze/")]

    # Operations ---------------------------------------------------------------------------------------

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if _consists_of_others(func):
            with self:
                return func.decompose(*args, **kwargs)
        tensors: list[Tensor] = []
        plain_args = _plain(args, tensors)
        plain_kwargs = {name: _plain(value, tensors) for name, value in kwargs.items()}
        placed = [x for x in tensors if isinstance(x, PretendedTensor)]
        target = kwargs.get("device")
        if not placed and (target is None or target.type != TYPE):
            return func(*args, **kwargs)
        device = _numbered(target) if target is not None else placed[0].device
        if device.type == "meta":
            return func(*plain_args, **kwargs)
        if func is _aten._to_copy.default:
            self._note_copy(args[0], device, bool(kwargs.get("non_blocking")))
        elif func is _aten.copy_.default:
            device = args[0].device
            self._note_copy(args[1], device, any(x is True for x in (*args[2:], kwargs.get("non_blocking"))))
        else:
            self._check_devices(func, tensors)
            self._note_reads(func, args, device)
        if target is not None:
            plain_kwargs["device"] = _HOST
        plain_kwargs.pop("pin_memory", None)
        result = func(*plain_args, **plain_kwargs)
        known = {id(_values(x)): x for x in tensors}  # of these, an operation in place returns one
        if isinstance(result, (tuple, list)):
            return type(result)(_on(x, device, known) for x in result)
        return _on(result, device, known)

    def _note_copy(self, source: Tensor, target: torch.device, asynchronous: bool) -> None:
        if source.device == target or not source.numel():
            return
        if _HOST not in (source.device, target):
            self._note("copy between devices", target, waits=False)
        elif source.device == _HOST:
            self._note("copy from cpu", target, waits=not asynchronous)
        else:
            self._note("copy to cpu", source.device)

    def _note_reads(self, func: Any, args: Any, device: torch.device) -> None:
        if func in _READS and device != _HOST:
            self._note(str(func).removeprefix("aten.").split(".")[0], device)
        if func in _INDEXING and device != _HOST:
            indices = [x for x in args[1] if x is not None]
            filled = len(args) > 2 and args[2].numel() == 1  # one value goes under the mask
            if any(x.dtype == torch.bool for x in indices) and not filled:
                self._note("boolean index", device)
            if any(x.device == _HOST for x in indices):
                self._note("copy from cpu", device)

    def _note(self, what: str, device: torch.device, waits: bool = True) -> None:
        self.contacts.append(Contact(what, _line(), device, self._step, waits))

    @staticmethod
    def _check_devices(func: Any, tensors: list[Tensor]) -> None:
        # A single number may come from the host, and so may indices.
        on_host = (x.dim() and func not in _INDEXING for x in tensors)
        devices = {
            x.device for x, counts in zip(tensors, on_host, strict=True) if counts or x.device != _HOST
        }
        if len(devices) > 1:
            found = " and ".join(sorted(map(str, devices)))
            raise RuntimeError(f"tensors on {found} in {func}, at {_line()}")


def _values(x: Any) -> Any:
    return x.values if isinstance(x, PretendedTensor) else x


def _plain(given: Any, tensors: list[Tensor]) -> Any:
    """Arguments with CPU tensors in the place of pretended ones; appends the tensors among them."""
    if isinstance(given, Tensor):
        tensors.append(given)
        return _values(given)
    if isinstance(given, (tuple, list)):
        return type(given)(_plain(x, tensors) for x in given)
    return given


@cache
def _consists_of_others(func: Any) -> bool:
    """Whether torch writes an operation by means of others; with tensors of inference mode it comes whole."""
    key = torch._C.DispatchKey.CompositeImplicitAutograd
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), key))


def _on(x: Any, device: torch.device, known: dict[int, Tensor]) -> Any:
    """A result on its device."""
    if not isinstance(x, Tensor) or device == _HOST:
        return x
    same = known.get(id(x))
    if same is None:
        return PretendedTensor(x, device)
    if same.shape != x.shape or same.stride() != x.stride():
        raise NotImplementedError("a pretended tensor cannot change its shape in place")
    return same


def _numbered(device: torch.device) -> torch.device:
    return torch.device(TYPE, 0) if device.type == TYPE and device.index is None else device


def _line() -> str:
    """The innermost line on the stack in one of the packages `_NAMED`, and what it says."""
    frame = sys._getframe(1)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        package = next((part for part in reversed(path.parts[:-1]) if part in _NAMED), None)
        if package is not None and path != _HERE and path.name != _CARRIER:
            start = len(path.parts) - 1 - path.parts[::-1].index(package)
            text = linecache.getline(str(path), frame.f_lineno).strip()
            return f"{'/'.join(path.parts[start:])}:{frame.f_lineno} {text}"
        frame = frame.f_back  # type: ignore[assignment]
    return "?"


_HERE = Path(__file__)
#: The module whose function brings tensors to the host for others; these are named.
_CARRIER = "host_copies.py"
_KERNELS = torch.library.Library("aten", "IMPL")


@cache
def _register_backend() -> None:
    """Make TYPE a backend of this process; outside of open blocks torch finds no accelerator of this kind."""

    def read(x: PretendedTensor) -> Any:
        """What `torch.tensor` does with numbers on a device, hidden from modes."""
        Accelerator._open[-1]._note("_local_scalar_dense", x.device)
        return x.values.item()

    _KERNELS.impl("_local_scalar_dense", read, "PrivateUse1")
    backend_registration._setup_privateuseone_for_python_backend(
        TYPE, _Module(), _Hook(), backend_registration._DummyDeviceGuard()
    )


class _Module(backend_registration._DummyBackendModule):
    """What `torch.pretended` is."""

    def is_available(self) -> bool:
        return bool(Accelerator._open)

    def device_count(self) -> int:
        return 2


class _Hook(backend_registration._DummyPrivateUse1Hook):
    def is_available(self) -> bool:
        return bool(Accelerator._open)
