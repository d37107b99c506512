"""Every error a user's input can cause. A message says what was done, what was expected and what to do."""

from __future__ import annotations


class RegazeError(ValueError):
    """Base of all errors caused by what the user asked for; the CLI prints it as one line and exits 2."""


class ShapeError(RegazeError):
    """A tensor whose shape or dtype does not fit the others."""


class UnsupportedModelError(RegazeError):
    """A model whose attention cannot be reached through transformers' attention interface."""


class ModelNotFoundError(RegazeError):
    """A model name or path that transformers cannot load."""


class UnknownMethodError(RegazeError):
    """An intervention name that nobody registered."""


class UnknownParameterError(RegazeError):
    """A parameter that the intervention does not have."""


class BadParameterError(RegazeError):
    """A parameter whose value makes no sense for the intervention or the model."""


class CompositionError(RegazeError):
    """Edits that have no common meaning on one attention layer."""


class RecordingError(RegazeError):
    """Something was asked for that cannot be (or was not) recorded."""


class InputError(RegazeError):
    """Images, questions or files that cannot be read or do not fit together."""


class GuessWarning(UserWarning):
    """regaze does not know something and goes on with a guess, which the message names."""
