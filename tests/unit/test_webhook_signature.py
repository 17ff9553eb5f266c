"""The signature of webhooks, by the Standard Webhooks specification."""

import pytest

from sdserve.settings import SettingsError, read_settings
from sdserve.webhook_signature import parse_secrets, secrets_of, signature, told

# The test vector of the specification's reference libraries.
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"  # noqa: S105 (public)
EVENT, TIMESTAMP, BODY = "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}'
SIGNATURE = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
OTHER = "whsec_" + "A" * 32


def test_the_reference_vector() -> None:
    assert signature(parse_secrets(SECRET), EVENT, TIMESTAMP, BODY) == SIGNATURE


def test_every_secret_signs_so_that_one_can_be_replaced() -> None:
    both = signature(parse_secrets(f"{OTHER}, {SECRET}"), EVENT, TIMESTAMP, BODY).split(" ")
    assert len(set(both)) == 2
    assert both[1] == SIGNATURE


def test_each_client_has_a_secret_of_its_own_for_each_that_is_configured() -> None:
    configured = parse_secrets(f"{OTHER},{SECRET}")
    assert secrets_of("", configured) == configured
    ann, bob = secrets_of("ann", configured), secrets_of("bob", configured)
    assert len({*configured, *ann, *bob}) == 6
    assert secrets_of("ann", configured[1:]) == ann[1:]
    for secret in ann:
        assert parse_secrets(told(secret)) == (secret,)


@pytest.mark.parametrize(
    "text", [SECRET.removeprefix("whsec_"), "whsec_", "whsec_AAAA", "whsec_" + "A" * 400,
             SECRET[:-1], SECRET + "!", f"{SECRET},hunter2"],
)  # fmt: skip
def test_a_secret_of_another_form_is_refused_and_not_shown(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SD_WEBHOOK_SECRETS", text)
    with pytest.raises(SettingsError, match=r"SD_WEBHOOK_SECRETS.*must be whsec_") as caught:
        read_settings()
    assert SECRET.removeprefix("whsec_") not in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_settings_do_not_show_the_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SD_WEBHOOK_SECRETS", SECRET)
    settings = read_settings()
    assert settings.webhook_targets is not None
    assert SECRET not in repr(settings)


def test_without_a_secret_webhooks_are_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SD_WEBHOOK_SECRETS", raising=False)
    monkeypatch.setenv("SD_WEBHOOK_ALLOW", "10.0.0.0/8")
    assert read_settings().webhook_targets is None


def test_a_wrong_allow_list_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SD_WEBHOOK_ALLOW", "10.0.0.1/8")
    with pytest.raises(SettingsError, match="SD_WEBHOOK_ALLOW"):
        read_settings()
