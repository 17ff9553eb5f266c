"""The signature of a webhook: the Standard Webhooks specification, version 1.0, symmetric.

https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

import binascii
import hashlib
import hmac
from base64 import b64decode, b64encode
from collections.abc import Sequence

PREFIX = "whsec_"
MIN_BYTES, MAX_BYTES = 24, 64  # of a secret, by the specification


def parse_secrets(text: str) -> tuple[bytes, ...]:
    """Read a comma-separated list of secrets in their `whsec_` form.

    Raises:
        ValueError: one of them has another form. The message does not show it.
    """
    return tuple(
        _parse(part, place)
        for place, part in enumerate(filter(None, (part.strip() for part in text.split(","))), 1)
    )


def _parse(text: str, place: int) -> bytes:
    hint = f"secret {place} must be {PREFIX} and {MIN_BYTES} to {MAX_BYTES} bytes in base64"
    if not text.startswith(PREFIX):
        raise ValueError(hint)
    try:
        secret = b64decode(text.removeprefix(PREFIX), validate=True)
    except binascii.Error:
        raise ValueError(hint) from None
    if not MIN_BYTES <= len(secret) <= MAX_BYTES:
        raise ValueError(hint)
    return secret


def secrets_of(client: str, secrets: Sequence[bytes]) -> tuple[bytes, ...]:
    """What signs the webhooks of one client: a secret of its own for each that is configured.

    Who knows his own cannot sign in another's name, nor find those that are configured.

    Args:
        client: the id of an API key; "" is anybody without one, and has the configured secrets.
        secrets: as `parse_secrets` reads them.
    """
    if not client:
        return tuple(secrets)
    # No event begins like this, so no signature of one is a client's secret.
    name = f"sdserve webhook secret of {client}".encode()
    return tuple(hmac.digest(secret, name, hashlib.sha256) for secret in secrets)


def told(secret: bytes) -> str:
    """A secret in its `whsec_` form."""
    return PREFIX + b64encode(secret).decode()


def signature(secrets: Sequence[bytes], event: str, timestamp: int, body: bytes) -> str:
    """The header `webhook-signature`: one signature for each secret, so that one can be replaced.

    Args:
        secrets: as `parse_secrets` reads them.
        event: the header `webhook-id`.
        timestamp: the header `webhook-timestamp`, Unix seconds.
        body: the bytes that are sent.
    """
    signed = f"{event}.{timestamp}.".encode() + body
    digests = (hmac.digest(secret, signed, hashlib.sha256) for secret in secrets)
    return " ".join(f"v1,{b64encode(digest).decode()}" for digest in digests)
