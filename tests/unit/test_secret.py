"""Passwords in the address of Redis, and secrets of webhooks, stay out of logs."""

import pickle
from datetime import timedelta

from deploy_scripts.builder import Surroundings
from sdserve.secret import Secret
from sdserve.settings import Settings

URL = "redis://:hunter2@redis:6379/0"
WEBHOOKS = "whsec_" + "aHVudGVyMmh1bnRlcjJodW50ZXIyaHVudGVyMg=="


def test_no_settings_show_a_password() -> None:
    settings = Settings(redis_url=URL, webhook_secrets=WEBHOOKS)
    told = Surroundings.of(settings, URL, is_key_required=False)
    for kept in (settings, told, pickle.loads(pickle.dumps(told))):  # noqa: S301 (our own)
        for text in (repr(kept), str(kept), f"{kept}"):
            assert "hunter2" not in text
            assert "aHVudGVy" not in text
    assert (told.edge.redis_url, told.replica.redis_url) == (URL, URL)
    assert told.edge.job_ttl == timedelta(days=1)


def test_a_secret_crosses_processes_as_a_secret() -> None:
    there = pickle.loads(pickle.dumps(Secret(URL)))  # noqa: S301 (our own)
    assert (repr(there), there == URL) == ("'****'", True)
