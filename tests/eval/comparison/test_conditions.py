"""Which items are compared when some of them failed."""

from __future__ import annotations

import pytest
from standins import write_pope

from regaze.errors import InputError
from regaze.eval.comparison.conditions import drop_failed_clusters


def test_whole_clusters_are_left_out(tmp_path):
    pope = write_pope(tmp_path)
    assert drop_failed_clusters(pope, set()) == (pope, [0, 1, 2, 3, 4])
    rest, kept = drop_failed_clusters(pope, {3})
    assert kept == [0, 1, 4]
    assert [item.key for item in rest.items] == ["random/1", "random/2", "random/5"]
    assert len(pope.items) == 5
    with pytest.raises(InputError, match="no question is left"):
        drop_failed_clusters(pope, {0, 2, 4})
