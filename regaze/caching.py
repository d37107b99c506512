"""`cached_property` without a lock, as Python's own is from 3.12 on.

Before that, all objects of a class share a lock for each of its cached properties. Two models in two threads
wait for each other there; and an interrupt (Ctrl-C) can leave it locked, so that the next thread waits for
ever. Two threads may now compute a value twice, and either counts.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING or sys.version_info >= (3, 12):
    from functools import cached_property
else:

    class cached_property:
        def __init__(self, function):
            self.function, self.__doc__ = function, function.__doc__

        def __set_name__(self, owner, name):
            self.name = name

        def __get__(self, instance, owner=None):
            if instance is None:
                return self
            return vars(instance).setdefault(self.name, self.function(instance))


__all__ = ["cached_property"]
