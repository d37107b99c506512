"""Read the data out of a pickle without running it: numbers, texts, containers, and attributes of objects.

A pickle is a program that may call anything. Here its instructions are read by `pickletools`, which runs
nothing, and the few that build plain data are carried out; every other one is an error.
"""

from __future__ import annotations

import io
import pickletools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from regaze.errors import InputError
from regaze.reading import timed

#: Instructions that push their argument.
_NUMBERS = frozenset({"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"})
_TEXTS = frozenset(
    {"STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
)
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_CONTAINERS = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": set}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_MARK = object()


class _Name(NamedTuple):
    """What a pickle refers to by name; nothing is imported."""

    module: str
    name: str


def _built_in(*names: str) -> frozenset[_Name]:
    return frozenset(_Name(module, name) for module in ("builtins", "__builtin__") for name in names)


_SETS = _built_in("set", "frozenset")
_DICTS = frozenset({_Name("collections", "defaultdict"), _Name("collections", "OrderedDict")})
_MAKERS = frozenset({_Name("copyreg", "_reconstructor"), _Name("copy_reg", "_reconstructor")})
_ALLOWED = _SETS | _DICTS | _MAKERS | _built_in("list", "dict", "object")


@dataclass
class PlainObject:
    """An object of a class that the pickle names: its attributes alone."""

    attributes: dict[Any, Any] = field(default_factory=dict)


def load_plain(data: bytes, source: str, classes: Sequence[tuple[str, str]]) -> Any:
    """The value of a pickle of plain data.

    Args:
        source: named in errors.
        classes: (module, name) of classes whose objects become `PlainObject`.

    Raises:
        InputError: it is no pickle, asks for anything else, or takes too long.
    """
    machine = _Machine(_ALLOWED.union(_Name(*each) for each in classes), len(data))
    try:
        for opcode, argument, _ in timed(pickletools.genops(io.BytesIO(data)), source, len(data)):
            machine.run(opcode.name, argument)
        (value,) = machine.stack
    except InputError:
        raise
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, MemoryError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"{source} is no pickle of plain data: {reason}") from error
    return value


class _Machine:
    """The stack and the memory of a pickle.

    Args:
        allowed: the names it may refer to.
        length: of the pickle in bytes; no more elements are ever copied.
    """

    def __init__(self, allowed: frozenset[_Name], length: int) -> None:
        self.stack: list[Any] = []
        self._memory: dict[int, Any] = {}
        self._allowed, self._to_copy = allowed, length

    def run(self, name: str, argument: Any) -> None:
        """Carry out an instruction. Raises one of what `load_plain` catches where that cannot be done."""
        stack = self.stack
        if name in _NUMBERS or name in _TEXTS:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _CONTAINERS:
            stack.append(_CONTAINERS[name]())
        elif name in _TUPLES:
            self._collect("TUPLE", self._popped(_TUPLES[name]))
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(self._memory[int(argument)])
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self._memory[int(argument)] = stack[-1]
        elif name == "MEMOIZE":
            self._memory[len(self._memory)] = stack[-1]
        elif name == "MARK":
            stack.append(_MARK)
        elif name in ("TUPLE", "LIST", "DICT", "APPENDS", "ADDITEMS", "SETITEMS"):
            self._collect(name, self._since_mark())
        elif name in ("APPEND", "SETITEM"):
            self._collect(f"{name}S", self._popped(1 if name == "APPEND" else 2))
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            self._name(argument.split(" ", 1) if name == "GLOBAL" else [stack.pop(-2), stack.pop()])
        elif name in ("REDUCE", "NEWOBJ"):
            self._make(stack.pop(-2), stack.pop(), name == "NEWOBJ")
        elif name == "BUILD":
            self._set_attributes(stack.pop())
        elif name not in ("PROTO", "FRAME", "STOP"):
            raise ValueError(f"its instruction {name} does more than build plain data")

    def _popped(self, count: int) -> list[Any]:
        values = self.stack[-count:]
        del self.stack[-count:]
        if len(values) < count:
            raise IndexError("an empty stack")
        return values

    def _since_mark(self) -> list[Any]:
        values: list[Any] = []
        while (value := self.stack.pop()) is not _MARK:
            values.append(value)
        return values[::-1]

    def _collect(self, name: str, values: list[Any]) -> None:
        """Make a container of the values, or put them into the one on the stack."""
        if name == "TUPLE":
            self.stack.append(tuple(values))
        elif name == "LIST":
            self.stack.append(values)
        elif name == "APPENDS":
            self._top(list).extend(values)
        elif name == "ADDITEMS":
            self._top(set).update(map(_hashable, values))
        else:
            pairs = dict(zip(map(_hashable, values[::2]), values[1::2], strict=True))
            if name == "DICT":
                self.stack.append(pairs)
            else:
                self._top(dict).update(pairs)

    def _top(self, kind: type) -> Any:
        if type(self.stack[-1]) is not kind:
            raise TypeError(f"expected a {kind.__name__} to put values into")
        return self.stack[-1]

    def _name(self, parts: Sequence[Any]) -> None:
        name = _Name(*parts)
        if name not in self._allowed:
            raise ValueError(f"it asks for {name.module}.{name.name}")
        self.stack.append(name)

    def _make(self, what: Any, arguments: Any, is_new: bool) -> None:
        """What a call of these names returns."""
        if type(what) is not _Name or type(arguments) is not tuple:
            raise TypeError("it calls something that is no name")
        if what in _SETS and not is_new:
            elements = arguments[0] if arguments else []
            self._to_copy -= len(elements)
            if self._to_copy < 0:
                raise ValueError("it copies more than it holds")
            self.stack.append(set(map(_hashable, elements)))
        elif what in _DICTS:
            self.stack.append({})
        elif what in _MAKERS or (is_new and what not in _ALLOWED):
            self.stack.append(PlainObject())
        else:
            raise ValueError(f"it calls {what.module}.{what.name}")

    def _set_attributes(self, attributes: Any) -> None:
        if type(attributes) is not dict:
            raise TypeError("its objects have no plain attributes")
        self._top(PlainObject).attributes = attributes


def _hashable(value: Any) -> Any:
    """A number or text. Raises TypeError for what may take long to be hashed."""
    if not isinstance(value, (str, int, float)):
        raise TypeError(f"a {type(value).__name__} cannot be looked up")
    return value
