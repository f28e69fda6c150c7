"""An interruption, and what is made when it is over."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from ddanalysis.distill import Job, Made
from ddanalysis.store import Checkpoint


class Stop(Exception):
    """An interruption."""


def resumed(job: Job, folder: Path, make: Callable[[Job], Made], after: int, left: int) -> Made:
    """What ``make`` makes when it is stopped in iteration ``after``, which is not saved, and begun again.

    It then has ``left`` iterations to go.
    """
    done: list[int] = []

    def stop(n: int) -> None:
        done.append(n)
        if len(done) == after:
            raise Stop

    checkpoint = Checkpoint(folder / "set.checkpoint", {}, seconds=0)
    with pytest.raises(Stop):
        make(replace(job, checkpoint=checkpoint, progress=stop))
    done.clear()
    made = make(replace(job, checkpoint=checkpoint, progress=done.append))
    assert len(done) == left
    return made
