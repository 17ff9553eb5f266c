"""What can go wrong with a call, each in a sentence with its next step.

SdServeError
└── ClientError
    ├── InvalidUrlError         the server's address is not an http(s) URL
    ├── ServerAwayError         no connection within the patience
    ├── WaitTimeoutError        the job has not ended within the time given
    ├── UnexpectedAnswerError   an answer that no sdserve server gives
    ├── NotSavedError           the disk refuses
    └── ApiError                the server refused; its own sentence
"""

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from sdserve.errors import SdServeError

DEFAULT_URL = "http://127.0.0.1:8000"


class ClientError(SdServeError):
    """A call that did not get its answer."""

    code = "client_error"


class InvalidUrlError(ClientError):
    """The server's address is not an http(s) URL."""

    code = "invalid_url"

    def __init__(self, url: str) -> None:
        super().__init__(f"'{url}' is not the address of a server: write it like {DEFAULT_URL}.")


class ServerAwayError(ClientError):
    """Nobody answered within the patience."""

    code = "server_away"

    def __init__(self, url: str, patience: timedelta, reason: str) -> None:
        super().__init__(
            f"{url} has not answered for {patience.total_seconds():.0f} s ({reason}): "
            "start the server, or pass the right --url."
        )


class WaitTimeoutError(ClientError):
    """What was waited for has not ended within the time that was given; it goes on."""

    code = "wait_timeout"

    def __init__(self, what: str, at_most: timedelta, status: str) -> None:
        super().__init__(
            f"{what} is still {status} after {at_most.total_seconds():g} s: "
            "it goes on at the server; wait again, or cancel it."
        )


class UnexpectedAnswerError(ClientError):
    """The answer does not fit the contract: another server, or another version."""

    code = "unexpected_answer"

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(f"The answer of {url} is not one of an sdserve server: {reason}.")


class NotSavedError(ClientError):
    """A file could not be written. No part of it is left under its name."""

    code = "not_saved"

    def __init__(self, path: Path, error: OSError) -> None:
        super().__init__(f"{path}: {error.strerror or error}. Make room, or choose another folder.")
        self.path = path


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One field of a request that the server refuses."""

    field: str
    message: str
    line: int | None = None  # of the upload of a batch, from 1


class ApiError(ClientError):
    """The server refused. `detail` is its own sentence."""

    code = "api_error"

    def __init__(
        self,
        status: int,
        title: str,
        detail: str,
        *,
        problem: str = "",
        job_id: str | None = None,
        is_temporary: bool = False,
        faults: tuple[Fault, ...] = (),
    ) -> None:
        super().__init__(detail or f"The server answered {status} ({title}).")
        self.status = status
        self.title = title
        self.detail = detail
        self.problem = problem  # the stable code of docs/http-api.md, e.g. "queue_full"; "" = none
        self.job_id = job_id  # of the job that failed, when the refusal is a job's outcome
        self.is_temporary = is_temporary  # worth another try within the patience
        self.faults = faults  # what is wrong with the request, where the server names it
