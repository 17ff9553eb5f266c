"""What clients ask of the answer: Prefer, Accept, Idempotency-Key."""

import pytest

from api.preferences import idempotency_key, preference, raw_format
from api.problems import HttpProblemError
from sdserve.generation import ImageFormat


@pytest.mark.parametrize(
    ("header", "wait", "applied"),
    [
        (None, None, None),
        ("", None, None),
        ("respond-async", 0, "respond-async"),
        ("wait=10", 10, "wait=10"),
        ('wait="10"', 10, "wait=10"),
        ("Wait=10", 10, "wait=10"),
        ("wait=9999", 60, "wait=60"),
        ("respond-async, wait=5", 5, "wait=5"),
        ("wait=5, respond-async", 5, "wait=5"),
        ("handling=lenient", None, None),
    ],
)
def test_prefer_says_how_long_to_hold(
    header: str | None, wait: float | None, applied: str | None
) -> None:
    read = preference(header)
    assert (read.wait, read.applied) == (wait, applied)


@pytest.mark.parametrize("header", ["wait=soon", "wait=-1", "wait=", "wait=1.5", "wait=1e9"])
def test_a_wait_that_is_no_number_is_refused(header: str) -> None:
    with pytest.raises(HttpProblemError) as caught:
        preference(header)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, None),
        ("*/*", None),
        ("application/json", None),
        ("image/png", ImageFormat.PNG),
        ("image/webp;q=0.9, image/png", ImageFormat.WEBP),
        ("application/json, image/png", None),
        ("text/html", None),
    ],
)
def test_accept_asks_for_raw_bytes(header: str | None, expected: ImageFormat | None) -> None:
    assert raw_format(header) is expected


def test_keys_are_trimmed_and_bounded() -> None:
    assert idempotency_key(None) is None
    assert idempotency_key("  a ") == "a"
    for bad in ("", "   ", "k" * 201):
        with pytest.raises(HttpProblemError):
            idempotency_key(bad)
