"""API keys: who asks, and how a token proves it. Pure: no clock, no network, no Redis.

A token is `sd_<id>_<secret>`. The id is public, the name of a client everywhere in the store; of
the secret only a digest is kept.
"""

import hashlib
import hmac
import re
import secrets
import string
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from sdserve.limits import Quotas

SECRET_BYTES = 32  # 256 bits
ID_LENGTH = 8
_ID_LETTERS = string.ascii_lowercase + string.digits
_ID = re.compile(r"[a-z0-9]{1,32}")
_TOKEN = re.compile(rf"sd_({_ID.pattern})_([A-Za-z0-9_-]{{43}})")


class Role(StrEnum):
    """What a key may do."""

    USER = "user"  # submits jobs; sees and cancels its own
    ADMIN = "admin"  # also sees and cancels those of all others


@dataclass(frozen=True, kw_only=True)
class ApiKey:
    """A key as the store keeps it. All times are the Redis server's."""

    id: str
    name: str  # for people
    role: Role
    digest: str  # of the secret
    created_at: datetime
    rotated_at: datetime | None = None  # when the secret was last replaced
    old_digest: str | None = None  # of the secret before that
    old_until: datetime | None = None  # how long that one is still accepted
    revoked_at: datetime | None = None
    quotas: Quotas = field(default_factory=Quotas)  # where it has its own

    def accepts(self, secret: str, now: datetime) -> bool:
        """Whether this secret proves the key at this moment."""
        given = digest_of(secret)
        # Both are compared whatever the first says: the time taken tells nothing.
        is_current = hmac.compare_digest(given, self.digest)
        is_old = hmac.compare_digest(given, self.old_digest or "")
        is_overlap = self.old_until is not None and now < self.old_until
        return self.revoked_at is None and (is_current or (is_old and is_overlap))


@dataclass(frozen=True, kw_only=True)
class Token:
    """What a client shows, in its two parts."""

    key_id: str
    secret: str

    def __repr__(self) -> str:
        return f"Token(key_id={self.key_id!r})"  # no log shows a secret

    @property
    def digest(self) -> str:
        return digest_of(self.secret)

    @property
    def text(self) -> str:
        return f"sd_{self.key_id}_{self.secret}"


def new_token(key_id: str | None = None) -> Token:
    """A new secret, for a new key or for the one with this id."""
    if key_id is None:
        key_id = "".join(secrets.choice(_ID_LETTERS) for _ in range(ID_LENGTH))
    return Token(key_id=key_id, secret=secrets.token_urlsafe(SECRET_BYTES))


def read_token(text: str) -> Token | None:
    """The parts of a token; None for a text that is none of ours."""
    match = _TOKEN.fullmatch(text)
    return Token(key_id=match[1], secret=match[2]) if match else None


def is_key_id(text: str) -> bool:
    """Whether `text` could be an id of ours, so that nothing else becomes part of a Redis key."""
    return _ID.fullmatch(text) is not None


def digest_of(secret: str) -> str:
    """What is kept of a secret, in hexadecimal.

    SHA-256 and no slow hash with a salt: those make up for what people choose as passwords. A
    secret of 256 random bits cannot be guessed at any speed, and this runs on every request.
    """
    return hashlib.sha256(secret.encode()).hexdigest()
