"""What clients ask of the answer: Prefer, Accept, Idempotency-Key."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.preferences import Preference, idempotency_key, preference, raw_format
from api.problems import HttpProblemError
from sdserve.generation import ImageFormat


@pytest.mark.parametrize(
    ("headers", "wait", "is_async"),
    [
        ([], None, False),
        ([""], None, False),
        (["respond-async"], None, True),
        (["RESPOND-ASYNC"], None, True),
        (["wait=10"], 10, False),
        (["Wait = 10"], 10, False),
        (['wait="10"'], 10, False),
        (['wait="1\\0"'], 10, False),  # a quoted pair
        (["wait=0"], 0, False),
        (["wait=9999"], 60, False),
        (["wait=" + "9" * 400], 60, False),
        (["respond-async, wait=5"], 5, True),
        (["wait=5, respond-async"], 5, True),
        (["respond-async", "wait=5"], 5, True),  # RFC 7240 §2: as one line
        (["respond-async; foo=bar; baz, wait=5; foo"], 5, True),
        (['foo; some="x, wait=9", wait=5'], 5, False),  # a comma inside a string
        (['foo="wait=9\\", respond-async", wait=5'], 5, False),
        (["wait=5, wait=9"], 5, False),  # §2: the first
        (["wait=5", "wait=9"], 5, False),
        (["handling=lenient, return=minimal"], None, False),
        ([", ,wait=5,,"], 5, False),
    ],
)
def test_prefer_is_read_as_the_rfc_writes_it(
    headers: list[str], wait: float | None, is_async: bool
) -> None:
    assert preference(headers) == Preference(wait=wait, is_async=is_async)


@pytest.mark.parametrize(
    "header",
    ["wait=soon", "wait=-1", "wait=", "wait", "wait=1.5", "wait=1e9", "wait=\u00b2", 'wait="5',
     "=5", "wait=5 6", 'respond-async="no"', "@, /", '"'],
)  # fmt: skip
def test_what_is_not_understood_is_ignored(header: str) -> None:
    assert preference([header]) == Preference()
    assert preference(["respond-async", header]) == Preference(is_async=True)


@given(st.lists(st.text('waitrespond-async=;,"\\ 0159'), max_size=3))
def test_whatever_is_sent_is_read(headers: list[str]) -> None:
    wait = preference(headers).wait
    assert wait is None or 0 <= wait <= 60


@pytest.mark.parametrize(
    ("preferred", "of_200", "of_202"),
    [
        (Preference(), None, None),
        (Preference(is_async=True), None, "respond-async"),  # a 200 is not what was asked for
        (Preference(wait=5), "wait=5", "wait=5"),
        (Preference(wait=5, is_async=True), "wait=5", "respond-async, wait=5"),
    ],
)
def test_only_what_was_done_is_said_to_be_applied(
    preferred: Preference, of_200: str | None, of_202: str | None
) -> None:
    assert preferred.applied(is_async=False) == of_200
    assert preferred.applied(is_async=True) == of_202


def test_async_alone_means_at_once_and_with_a_wait_within_it() -> None:
    assert Preference().hold is None
    assert Preference(is_async=True).hold == 0
    assert Preference(is_async=True, wait=5).hold == 5


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


def test_a_preference_that_is_too_long_is_ignored() -> None:
    assert preference(["a" + " " * 20_000 + "x", "wait=3"]) == Preference()
    assert preference(['"' + '\\"' * 20_000]) == Preference()
