"""The replica as Ray Serve knows it. Serve constructs it and calls `__del__` to stop it.

No request ever reaches it through Serve: it pulls (puller.py). The pulling is done in a child of
the node's standby process, which has the libraries imported, or in this process where none runs.
Either way a puller that dies takes this process with it, and Serve starts another replica.
"""

import atexit
import os
import threading
import time
from datetime import timedelta

from sdserve.apps import AppSpec
from workers.priority import give_way
from workers.puller import Puller
from workers.replica_settings import ReplicaSettings
from workers.standby import Child, fork_puller


class DiffusionReplica:
    """One replica of one app."""

    def __init__(self, spec: AppSpec, settings: ReplicaSettings) -> None:
        born = time.monotonic()
        self._stopping = False
        self._child = fork_puller(spec, settings, born=born)
        self._puller = None
        if self._child is None:
            give_way(spec)
            self._puller = Puller(spec, settings, born=born)
        else:
            watch = threading.Thread(target=self._watch, args=(self._child,), daemon=True)
            watch.start()
        atexit.register(self._terminate)  # what Ray makes of a SIGTERM; it calls no `__del__`

    def __del__(self) -> None:
        self._stopping = True
        if self._child:
            self._child.stop()
        elif self._puller:
            self._puller.stop()

    def _terminate(self) -> None:
        self._stopping = True
        if self._child:
            self._child.terminate()
        elif self._puller:
            self._puller.stop(timedelta(0))

    def _watch(self, child: Child) -> None:
        child.wait()
        if not self._stopping:
            os._exit(1)  # as if the child were this process: Serve starts another replica at once
