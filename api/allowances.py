"""What a client may still do, as headers (draft-ietf-httpapi-ratelimit-headers-10).

RateLimit-Policy: "requests";q=600;w=60, "jobs";q=1000;qu="concurrent-requests"
RateLimit: "requests";r=599;t=1, "jobs";r=998
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from starlette.requests import Request

from sdserve.limits import Quotas
from sdserve.operations import Standing

DAY = 86400  # seconds


@dataclass(frozen=True, kw_only=True)
class Allowance:
    """One quota and what is left of it."""

    name: str
    quota: int
    remaining: int
    unit: str | None = None  # of both; None: requests
    window: int | None = None  # seconds in which the quota may be used
    reset: int | None = None  # seconds until there is more


def note_allowances(request: Request, allowances: Iterable[Allowance]) -> None:
    """Remember them for the answer to this request, be it a refusal."""
    request.state.allowances = [*allowances_of(request), *allowances]


def allowances_of(request: Request) -> Sequence[Allowance]:
    noted: Sequence[Allowance] = getattr(request.state, "allowances", ())
    return noted


def allowances(quotas: Quotas, standing: Standing) -> list[Allowance]:
    """The quotas that a submission is measured by."""
    left = math.ceil(standing.day_left.total_seconds())
    found = [
        _allowance("jobs", quotas.jobs, standing.jobs, unit="concurrent-requests"),
        _allowance("queued", quotas.queued, standing.queued, unit="concurrent-requests"),
        _allowance("images", quotas.images_per_day, standing.images, unit="images", left=left),
        _allowance(
            "gpu-seconds", quotas.gpu_seconds_per_day, math.ceil(standing.gpu_ms / 1000),
            unit="gpu-seconds", left=left,
        ),
    ]  # fmt: skip
    return [allowance for allowance in found if allowance is not None]


def _allowance(
    name: str, quota: int | None, used: int, *, unit: str, left: int | None = None
) -> Allowance | None:
    """An allowance, where there is a quota; `left` are the seconds of the day, if it is of one."""
    if quota is None:
        return None
    return Allowance(
        name=name,
        quota=quota,
        remaining=max(0, quota - used),
        unit=unit,
        window=None if left is None else DAY,
        reset=left,
    )


def rate_headers(noted: Sequence[Allowance]) -> dict[str, str]:
    """Both fields as Lists of Items (RFC 9651); none when there is nothing to tell."""
    if not noted:
        return {}
    policies, left = list[str](), list[str]()
    for one in noted:
        unit = f';qu="{one.unit}"' if one.unit else ""
        window = "" if one.window is None else f";w={one.window}"
        reset = "" if one.reset is None else f";t={one.reset}"
        policies.append(f'"{one.name}";q={one.quota}{unit}{window}')
        left.append(f'"{one.name}";r={one.remaining}{reset}')
    return {"RateLimit-Policy": ", ".join(policies), "RateLimit": ", ".join(left)}
