"""For tests without a Redis server: of sdserve itself, and of programs that use its job store."""

from sdserve.testing.memory_store import InMemoryJobStore

__all__ = ["InMemoryJobStore"]
