"""Wrap a model, know its tokens, record its attention, draw it."""

from regaze.toolkit.context import Context
from regaze.toolkit.load import load
from regaze.toolkit.record import Record, Trace
from regaze.toolkit.tokens import Role, TokenMap
from regaze.toolkit.wrap import Gaze, wrap

__all__ = ["Context", "Gaze", "Record", "Role", "TokenMap", "Trace", "load", "wrap"]
