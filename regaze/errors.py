"""Every error that a user's input can cause.

A message says what the user did, what was expected and what to do.
"""

from __future__ import annotations


class RegazeError(ValueError):
    """Base of all errors that the user can fix; the command line prints them as one line and exits with 2."""


class ShapeError(RegazeError):
    """A tensor whose shape or dtype does not fit the others."""


class UnsupportedModelError(RegazeError):
    """A model whose attention cannot be reached through transformers' attention interface."""


class ModelNotFoundError(RegazeError):
    """A model name or path that transformers cannot load."""


class UnknownMethodError(RegazeError):
    """A method name that is not registered."""


class UnknownParameterError(RegazeError):
    """A parameter that the method or function does not have."""


class BadParameterError(RegazeError):
    """A parameter value that is out of range, or does not fit the method or the model."""


class CompositionError(RegazeError):
    """Edits that cannot act together on one attention layer."""


class RecordingError(RegazeError):
    """A requested statistic that cannot be recorded, or was not."""


class InputError(RegazeError):
    """Images, questions or files that cannot be read or do not fit together."""


class GuessWarning(UserWarning):
    """regaze had to guess something; the message says what."""
