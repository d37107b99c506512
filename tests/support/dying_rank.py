"""`python -m regaze`, but the process of rank $REGAZE_TEST_DIES is killed before it keeps a second batch."""

from __future__ import annotations

import os
import signal

from regaze.cli import main
from regaze.eval.run.journal import Journal

append, kept = Journal.append, []


def dying(self, batch):
    if os.environ["RANK"] == os.environ["REGAZE_TEST_DIES"] and kept:
        os.kill(os.getpid(), signal.SIGKILL)
    kept.append(batch)
    append(self, batch)


Journal.append = dying
main()
