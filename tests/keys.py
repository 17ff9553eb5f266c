"""API keys for tests."""

from sdserve.api_keys import Role, Token, new_token
from sdserve.key_operations import CreateKey
from sdserve.limits import Quotas
from sdserve.store import RedisJobStore
from sdserve.testing import InMemoryJobStore


def create_key(
    store: RedisJobStore | InMemoryJobStore,
    name: str,
    role: Role = Role.USER,
    quotas: Quotas | None = None,
) -> Token:
    """A new key; what its client shows."""
    token = new_token()
    create = CreateKey(
        key_id=token.key_id,
        name=name,
        role=role,
        digest=token.digest,
        quotas=quotas or Quotas(),
    )
    assert store.run(create)
    return token


def bearer(token: Token) -> dict[str, str]:
    """The header with which a client shows it."""
    return {"Authorization": f"Bearer {token.text}"}
