"""The API keys of the store in memory: what the scripts of keys do, said once more in Python."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from sdserve.api_keys import ApiKey
from sdserve.key_operations import (
    CreateKey,
    KeyChange,
    KeyView,
    RevokeKey,
    RotateKey,
    SetQuotas,
    ViewKey,
)


class InMemoryKeys:
    """A part of `InMemoryJobStore`, which holds the lock."""

    def __init__(self) -> None:
        self._keys: dict[str, ApiKey] = {}
        self.operations: dict[str, Callable[[Any, float], Any]] = {
            "create_key": self._create,
            "rotate_key": self._rotate,
            "revoke_key": self._revoke,
            "set_quotas": self._set_quotas,
            "view_key": self._view,
        }

    @property
    def ids(self) -> list[str]:
        """The oldest first."""
        return list(self._keys)

    def _create(self, op: CreateKey, now: float) -> bool:
        key = ApiKey(
            id=op.key_id,
            name=op.name,
            role=op.role,
            digest=op.digest,
            quotas=op.quotas,
            created_at=datetime.fromtimestamp(now, UTC),
        )
        return self._keys.setdefault(op.key_id, key).digest == op.digest

    def _rotate(self, op: RotateKey, now: float) -> KeyChange:
        key = self._keys.get(op.key_id)
        if key is None:
            return KeyChange.MISSING
        if key.revoked_at is not None:
            return KeyChange.REVOKED
        if key.digest != op.digest:  # else its reply was lost
            self._keys[key.id] = replace(
                key,
                digest=op.digest,
                rotated_at=datetime.fromtimestamp(now, UTC),
                old_digest=key.digest,
                old_until=datetime.fromtimestamp(now, UTC) + op.overlap,
            )
        return KeyChange.DONE

    def _set_quotas(self, op: SetQuotas, _now: float) -> KeyChange:
        key = self._keys.get(op.key_id)
        if key is None:
            return KeyChange.MISSING
        if key.revoked_at is not None:
            return KeyChange.REVOKED
        self._keys[key.id] = replace(key, quotas=op.quotas)
        return KeyChange.DONE

    def _revoke(self, op: RevokeKey, now: float) -> KeyChange:
        key = self._keys.get(op.key_id)
        if key is None:
            return KeyChange.MISSING
        self._keys[key.id] = replace(
            key, revoked_at=key.revoked_at or datetime.fromtimestamp(now, UTC)
        )
        return KeyChange.DONE

    def _view(self, op: ViewKey, now: float) -> KeyView:
        return KeyView(key=self._keys.get(op.key_id), now=datetime.fromtimestamp(now, UTC))
