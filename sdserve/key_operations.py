"""The operations on API keys (api_keys.py), as those on jobs: one script each, typed."""

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, ClassVar

from pydantic import TypeAdapter

from sdserve import keys
from sdserve.api_keys import ApiKey, Role
from sdserve.limits import Quotas
from sdserve.operations import Argument, Operation
from sdserve.operations.wire import fields_of, milliseconds, time_of

_QUOTAS = TypeAdapter(Quotas)


@dataclass(frozen=True, kw_only=True)
class CreateKey(Operation[bool]):
    """Store a new key. False: its id is taken."""

    script: ClassVar[str] = "create_key"
    key_id: str
    name: str
    role: Role
    digest: str
    quotas: Quotas = field(default_factory=Quotas)

    @property
    def keys(self) -> list[str]:
        return [keys.KEY + self.key_id, keys.KEYS]

    @property
    def arguments(self) -> list[Argument]:
        return [self.key_id, self.name, self.role, self.digest, _quotas_text(self.quotas)]

    def read(self, reply: Any) -> bool:
        return reply == 1


class KeyChange(StrEnum):
    """What became of a change of a key."""

    DONE = "done"
    MISSING = "missing"  # no such key
    REVOKED = "revoked"  # refused: it has been revoked


@dataclass(frozen=True, kw_only=True)
class RotateKey(Operation[KeyChange]):
    """Give a key a new secret; the old one is accepted for `overlap` more."""

    script: ClassVar[str] = "rotate_key"
    key_id: str
    digest: str
    overlap: timedelta

    @property
    def keys(self) -> list[str]:
        return [keys.KEY + self.key_id]

    @property
    def arguments(self) -> list[Argument]:
        return [self.digest, milliseconds(self.overlap)]

    def read(self, reply: Any) -> KeyChange:
        return KeyChange(reply.decode())


@dataclass(frozen=True, kw_only=True)
class SetQuotas(Operation[KeyChange]):
    """Give a key these quotas of its own instead of those it has."""

    script: ClassVar[str] = "set_quotas"
    key_id: str
    quotas: Quotas

    @property
    def keys(self) -> list[str]:
        return [keys.KEY + self.key_id]

    @property
    def arguments(self) -> list[Argument]:
        return [_quotas_text(self.quotas)]

    def read(self, reply: Any) -> KeyChange:
        return KeyChange(reply.decode())


@dataclass(frozen=True, kw_only=True)
class RevokeKey(Operation[KeyChange]):
    """Accept no secret of this key any more. Its jobs are not touched."""

    script: ClassVar[str] = "revoke_key"
    key_id: str

    @property
    def keys(self) -> list[str]:
        return [keys.KEY + self.key_id]

    @property
    def arguments(self) -> list[Argument]:
        return []

    def read(self, reply: Any) -> KeyChange:
        return KeyChange(reply.decode())


@dataclass(frozen=True, kw_only=True)
class KeyView:
    """A key, or None where there is none, and the server's time of the look."""

    key: ApiKey | None
    now: datetime


@dataclass(frozen=True, kw_only=True)
class ViewKey(Operation[KeyView]):
    """A key at one moment."""

    script: ClassVar[str] = "view_key"
    key_id: str

    @property
    def keys(self) -> list[str]:
        return [keys.KEY + self.key_id]

    @property
    def arguments(self) -> list[Argument]:
        return []

    def read(self, reply: Any) -> KeyView:
        now, flat = reply
        fields = fields_of(flat)
        key = None
        if fields:
            key = ApiKey(
                id=self.key_id,
                name=fields["name"],
                role=Role(fields["role"]),
                digest=fields["digest"],
                created_at=time_of(fields["created"]),
                rotated_at=time_of(fields["rotated"]) if "rotated" in fields else None,
                old_digest=fields.get("old_digest"),
                old_until=time_of(fields["old_until"]) if "old_until" in fields else None,
                revoked_at=time_of(fields["revoked"]) if "revoked" in fields else None,
                quotas=_QUOTAS.validate_json(fields.get("quotas", "{}")),
            )
        return KeyView(key=key, now=time_of(now))


def _quotas_text(quotas: Quotas) -> str:
    return _QUOTAS.dump_json(quotas, exclude_none=True).decode()
