"""Tokens and keys, without a store."""

import hmac
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from sdserve.api_keys import ApiKey, Role, Token, digest_of, is_key_id, new_token, read_token
from sdserve.loopback import is_loopback
from sdserve.settings import Auth, Settings

EVERYWHERE = "0.0.0.0"  # noqa: S104 (nothing is bound)
NOW = datetime(2026, 11, 24, tzinfo=UTC)
SECRET, OLD = new_token("a").secret, new_token("a").secret
KEY = ApiKey(id="a", name="ann", role=Role.USER, digest=digest_of(SECRET), created_at=NOW)


def test_a_token_is_read_as_it_was_made() -> None:
    for _ in range(200):  # their letters are random
        token = new_token()
        assert read_token(token.text) == token
        assert is_key_id(token.key_id)


@pytest.mark.parametrize(
    "text",
    [
        "", "sd_a", f"sd__{SECRET}", f"sd_A_{SECRET}", f"sd_a_{SECRET}x", f"sd_a_{SECRET[1:]}",
        f"sd_a_{SECRET}\n", f"xx_a_{SECRET}", f"sd_a:b_{SECRET}", f"sd_{'a' * 33}_{SECRET}",
    ],
)  # fmt: skip
def test_nothing_else_is_a_token(text: str) -> None:
    assert read_token(text) is None


def test_secrets_have_256_bits_and_are_never_the_same() -> None:
    secrets = {new_token("a").secret for _ in range(1000)}
    assert len(secrets) == 1000
    assert all(len(secret) == 43 for secret in secrets)  # base64 of 32 bytes


def test_a_token_hides_its_secret_from_logs() -> None:
    token = new_token("a")
    assert token.secret not in repr(token)
    assert token.secret not in f"{token}"
    assert repr(token) == repr(Token(key_id="a", secret=SECRET))


def test_only_the_secret_is_accepted() -> None:
    assert KEY.accepts(SECRET, NOW)
    assert not KEY.accepts(OLD, NOW)
    assert not KEY.accepts("", NOW)
    assert not KEY.accepts(KEY.digest, NOW)


def test_a_revoked_key_accepts_nothing() -> None:
    assert not replace(KEY, revoked_at=NOW).accepts(SECRET, NOW)


def test_the_old_secret_is_accepted_until_its_overlap_ends() -> None:
    end = NOW + timedelta(seconds=5)
    key = replace(KEY, old_digest=digest_of(OLD), old_until=end)
    assert key.accepts(OLD, end - timedelta(milliseconds=1))
    assert not key.accepts(OLD, end)
    assert key.accepts(SECRET, end)


def test_digests_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = list[str]()

    def compare(one: str, other: str) -> bool:
        compared.append(other)
        return one == other

    monkeypatch.setattr(hmac, "compare_digest", compare)
    key = replace(KEY, old_digest=digest_of(OLD), old_until=NOW)
    for secret in (SECRET, OLD, "no"):
        key.accepts(secret, NOW)
    # Each time both, whatever the first comparison says.
    assert compared == [key.digest, key.old_digest] * 3


@pytest.mark.parametrize(
    ("auth", "host", "is_required"),
    [
        (Auth.AUTO, "127.0.0.1", False), (Auth.AUTO, "localhost", False), (Auth.AUTO, "::1", False),
        (Auth.AUTO, EVERYWHERE, True), (Auth.AUTO, "::", True), (Auth.AUTO, "10.0.0.7", True),
        (Auth.AUTO, "some.host", True), (Auth.ON, "127.0.0.1", True), (Auth.OFF, EVERYWHERE, False),
    ],
)  # fmt: skip
def test_a_key_is_required_unless_only_this_machine_can_ask(
    auth: Auth, host: str, is_required: bool
) -> None:
    assert Settings(auth=auth, http_host=host).is_key_required is is_required


def test_a_name_is_not_looked_up_to_be_loopback() -> None:
    assert not is_loopback("127.0.0.1.example")
