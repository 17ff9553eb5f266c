"""Who goes first when there is not enough CPU for all."""

import os

from sdserve.apps import AppSpec

NICENESS = 10  # a tenth of the CPU time of one that has 0, where both want all (sched(7))


def give_way(spec: AppSpec) -> None:
    """Let this process of a replica draw with what the HTTP processes leave, if it has no GPU.

    An answer takes a millisecond of CPU, for which a picture that takes all of it can wait.
    """
    if not spec.num_gpus:
        os.nice(NICENESS)
