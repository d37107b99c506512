"""How much one request may ask of an engine. Whoever starts the engine sets it, by environment variables."""

from __future__ import annotations

import os

from regaze.errors import BadParameterError, InputError

#: Methods of one request.
METHODS = "REGAZE_SERVING_MAX_METHODS"
#: Second contexts of one request, each a request of its own in the engine, of all of its answers together.
CONTEXTS = "REGAZE_SERVING_MAX_CONTEXTS"
#: What these are where nobody has set them, and what they count.
_LIMITS = {METHODS: (8, "methods"), CONTEXTS: (16, "second contexts (of all of its answers together)")}


def check_limit(variable: str, count: int) -> None:
    """Refuse a request with more of what an environment variable bounds.

    Raises:
        BadParameterError: it has more. InputError: the variable is no number.
    """
    most, what = _LIMITS[variable]
    given = os.environ.get(variable) or str(most)
    if not given.isdecimal():
        raise InputError(f"{variable} is a number of {what}, got {given!r}: start the engine with another")
    if count > int(given):
        raise BadParameterError(
            f"this request has {count} {what}, and one may have {given}: ask for fewer, or start the engine "
            f"with {variable}={count} in its environment"
        )
