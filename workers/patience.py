"""Calls to the job store that are worth waiting for."""

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from sdserve.errors import StoreUnavailableError

log = logging.getLogger(__name__)

Value = TypeVar("Value")

PATIENCE = 120.0  # seconds that a finished picture waits for Redis to come back
RETRY = 0.5  # seconds


def patiently(call: Callable[[], Value]) -> Value:
    """Call the store, and again while Redis is away.

    Raises:
        StoreUnavailableError: Redis stayed away for PATIENCE.
    """
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return call()
        except StoreUnavailableError as error:
            if time.monotonic() > deadline:
                raise
            log.warning("%s", error)
            time.sleep(RETRY)
