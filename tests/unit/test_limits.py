"""Rates as people write them, and what is left of quotas as headers tell it."""

from datetime import timedelta

import pytest

from api.allowances import Allowance, allowances, rate_headers
from sdserve.limits import Quotas, Rate
from sdserve.operations import Standing
from sdserve.settings import SettingsError, read_settings

STANDING = Standing(
    jobs=3, queued=2, images=12, gpu_ms=2500, day_left=timedelta(hours=1, milliseconds=1)
)


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("600/minute", Rate(requests=600, seconds=60)),
        ("1/second", Rate(requests=1, seconds=1)),
        ("50/hour", Rate(requests=50, seconds=3600)),
        ("9/day", Rate(requests=9, seconds=86400)),
    ],
)
def test_a_rate_is_read_and_written(text: str, rate: Rate) -> None:
    assert Rate.parse(text) == rate
    assert str(rate) == text


@pytest.mark.parametrize("text", ["", "600", "0/minute", "-1/minute", "600/week", "6 per minute"])
def test_nothing_else_is_a_rate(text: str) -> None:
    with pytest.raises(ValueError, match="600/minute"):
        Rate.parse(text)


def test_a_wrong_rate_in_the_environment_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SD_RATE_LIMIT", "often")
    with pytest.raises(SettingsError, match=r"SD_RATE_LIMIT is wrong: .*600/minute"):
        read_settings()
    monkeypatch.setenv("SD_RATE_LIMIT", "5/second")
    assert read_settings().limits.client.rate == Rate(requests=5, seconds=1)


def test_headers_are_lists_of_structured_fields() -> None:
    quotas = Quotas(jobs=5, queued=2, images_per_day=10, gpu_seconds_per_day=100)
    requests = Allowance(name="requests", quota=600, remaining=599, window=60, reset=7)
    assert rate_headers([requests, *allowances(quotas, STANDING)]) == {
        "RateLimit-Policy": '"requests";q=600;w=60, "jobs";q=5;qu="concurrent-requests", '
        '"queued";q=2;qu="concurrent-requests", "images";q=10;qu="images";w=86400, '
        '"gpu-seconds";q=100;qu="gpu-seconds";w=86400',
        # Never below zero, and whole seconds until there really is more.
        "RateLimit": '"requests";r=599;t=7, "jobs";r=2, "queued";r=0, "images";r=0;t=3601, '
        '"gpu-seconds";r=97;t=3601',
    }


def test_who_has_no_quotas_gets_no_headers() -> None:
    assert rate_headers(allowances(Quotas(), STANDING)) == {}
