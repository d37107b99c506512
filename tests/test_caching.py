"""Values that are computed once, without a lock."""

from __future__ import annotations

import threading

from regaze.caching import cached_property


class Sum:
    def __init__(self, *numbers, before=lambda: None):
        self.numbers, self.before, self.count = numbers, before, 0

    @cached_property
    def value(self):
        """Of all numbers."""
        self.before()
        self.count += 1
        return sum(self.numbers)


def test_a_value_is_computed_once_for_each_object():
    one, other = Sum(1, 2), Sum(3)
    assert [one.value, one.value, other.value] == [3, 3, 3]
    assert one.count == other.count == 1
    del one.value
    assert (one.value, one.count) == (3, 2)
    assert Sum.value.__doc__ == "Of all numbers."


def test_no_object_waits_for_another_one():
    """Whose thread may have been interrupted, and never go on."""
    begun, goes_on = threading.Event(), threading.Event()

    def wait():
        begun.set()
        assert goes_on.wait(60)

    slow, values = Sum(1, before=wait), []
    threads = [
        threading.Thread(target=lambda each=each: values.append(each.value)) for each in (slow, Sum(2))
    ]
    threads[0].start()
    assert begun.wait(60)
    threads[1].start()
    threads[1].join(20)
    assert values == [2]
    goes_on.set()
    threads[0].join(60)
    assert values == [2, 1]
