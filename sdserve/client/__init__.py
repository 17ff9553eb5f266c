"""A typed client of an sdserve server, sync and async. No part of the server is needed.

`SdClient` and `AsyncSdClient` know docs/http-api.md and nothing of Ray or Redis; docs/client.md has
examples. Inside: calls are programs without I/O (`job_calls`) that yield what they need
(`effects`), and each client is a thin driver of them.
"""

from sdserve.client.async_client import AsyncSdClient
from sdserve.client.errors import (
    DEFAULT_URL,
    ApiError,
    ClientError,
    Fault,
    InvalidUrlError,
    NotSavedError,
    ServerAwayError,
    UnexpectedAnswerError,
    WaitTimeoutError,
)
from sdserve.client.sync_client import SdClient
from sdserve.client.views import (
    BatchCounts,
    BatchLineView,
    BatchView,
    JobEvent,
    JobView,
    Picture,
    Preview,
    Progress,
    Usage,
    UsageRow,
    UsageView,
)

__all__ = [
    "DEFAULT_URL",
    "ApiError",
    "AsyncSdClient",
    "BatchCounts",
    "BatchLineView",
    "BatchView",
    "ClientError",
    "Fault",
    "InvalidUrlError",
    "JobEvent",
    "JobView",
    "NotSavedError",
    "Picture",
    "Preview",
    "Progress",
    "SdClient",
    "ServerAwayError",
    "UnexpectedAnswerError",
    "Usage",
    "UsageRow",
    "UsageView",
    "WaitTimeoutError",
]
