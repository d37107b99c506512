"""Wrap a model, know its tokens, record its attention, draw it."""

from regaze.toolkit.load import load
from regaze.toolkit.model.context import Context
from regaze.toolkit.prompts.token_map import Role, TokenMap
from regaze.toolkit.record.record import Record, Trace
from regaze.toolkit.wrap import Gaze, wrap

__all__ = ["Context", "Gaze", "Record", "Role", "TokenMap", "Trace", "load", "wrap"]
