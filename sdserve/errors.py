"""Every error of ours. `str(error)` says in a sentence what is wrong and what to do next.

SdServeError
├── CheckpointError                a file that cannot be served
│   ├── CheckpointNotFoundError
│   ├── InvalidCheckpointError     not a readable .safetensors file
│   └── UnsupportedCheckpointError a readable file of a kind that is not served
├── DeployError                    an app that cannot be deployed
│   ├── AppNameCollisionError
│   └── AppNotFoundError
├── RequestError                   a request that cannot be accepted
│   ├── InvalidParameterError
│   ├── IdempotencyConflictError
│   ├── OverloadError              there is no room for it now
│   │   ├── QueueFullError
│   │   ├── ServerFullError
│   │   ├── StorageFullError
│   │   ├── BatchesFullError
│   │   └── QuotaError             of this API key; others have some
│   │       ├── ClientFullError
│   │       ├── ClientQueueFullError
│   │       ├── ImagesSpentError
│   │       ├── GpuSpentError
│   │       ├── TooManyHeldError
│   │       ├── TooManyWebhooksError
│   │       └── RateLimitError
│   └── AppBrokenError
├── UnauthorizedError              no valid API key
├── KeyNotFoundError               no API key has this id
├── KeyRevokedError
├── JobNotFoundError
├── JobExpiredError
├── BatchNotFoundError
├── BatchEndedError                there is nothing to cancel any more
├── GenerationError                a job that cannot be done
│   ├── OutOfMemoryError
│   └── ResultTooLargeError
├── StoreUnavailableError          Redis is away or misconfigured
│   └── StoreFullError             its memory is used up
└── RedisServerError               the embedded Redis server cannot be started
"""

from pathlib import Path


class SdServeError(Exception):
    """Base of all errors of sdserve. `code` is stable: problem types and job errors use it."""

    code = "internal_error"


class CheckpointError(SdServeError):
    """A file that cannot be served."""

    code = "invalid_checkpoint"

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason


class CheckpointNotFoundError(CheckpointError):
    """No file at this path."""

    code = "checkpoint_not_found"


class InvalidCheckpointError(CheckpointError):
    """The file is not a complete, well-formed .safetensors file."""


class UnsupportedCheckpointError(CheckpointError):
    """A well-formed file of a kind that cannot be served: a LoRA, a VAE, an unknown family."""

    code = "unsupported_checkpoint"


class DeployError(SdServeError):
    """An app that cannot be deployed as asked."""

    code = "deploy_failed"


class AppNameCollisionError(DeployError):
    """Two files collapse to one app name."""

    code = "app_name_collision"

    def __init__(self, app: str, first: Path, second: Path) -> None:
        super().__init__(
            f"{first} and {second} would both become the app '{app}': rename one of the two files."
        )


class AppNotFoundError(DeployError):
    """No app of this name is deployed."""

    code = "app_not_found"

    def __init__(self, app: str, known: list[str]) -> None:
        names = ", ".join(sorted(known)) or "none yet (bash deploy_sd.sh FILE.safetensors)"
        super().__init__(f"No app '{app}' is deployed. Deployed apps: {names}.")


class RequestError(SdServeError):
    """A request that cannot be accepted."""

    code = "invalid_request"


class InvalidParameterError(RequestError):
    """One parameter is outside what this app's checkpoint can do."""

    code = "invalid_parameter"

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field
        self.message = message


class IdempotencyConflictError(RequestError):
    """The Idempotency-Key was used before with another body."""

    code = "idempotency_conflict"

    def __init__(self, job_id: str, *, what: str = "job") -> None:
        super().__init__(
            f"This Idempotency-Key belongs to {what} {job_id}, which was submitted with another "
            "body: use a new key for a new request."
        )
        self.job_id = job_id


class OverloadError(RequestError):
    """There is no room for the request now."""

    code = "overloaded"

    def __init__(self, reason: str, retry_after: int) -> None:
        super().__init__(f"{reason}: retry in {retry_after} s.")
        self.retry_after = retry_after  # seconds


class QueueFullError(OverloadError):
    """The app's queue is at its bound."""

    code = "queue_full"


class ServerFullError(OverloadError):
    """The queues of all apps together are at their bound."""

    code = "server_full"


class StorageFullError(OverloadError):
    """The memory for results is used up by results that must be kept for now."""

    code = "storage_full"


class BatchesFullError(OverloadError):
    """Unfinished batches take all the room there is for batches."""

    code = "batches_full"


class QuotaError(OverloadError):
    """The client has what one client may have."""


class ClientFullError(QuotaError):
    """The client has as many unfinished jobs as it may have."""

    code = "too_many_jobs"


class ClientQueueFullError(QuotaError):
    """The client has as many queued jobs as it may have."""

    code = "too_many_queued_jobs"


class ImagesSpentError(QuotaError):
    """The client's images of this day are drawn, or asked for."""

    code = "images_spent"


class GpuSpentError(QuotaError):
    """The client's GPU seconds of this day are spent."""

    code = "gpu_seconds_spent"


class TooManyHeldError(QuotaError):
    """The client holds as many requests open as it may."""

    code = "too_many_held"


class TooManyWebhooksError(QuotaError):
    """As many of the client's webhook events wait for delivery as may."""

    code = "too_many_webhooks"

    def __init__(self, waiting: int, retry_after: int) -> None:
        super().__init__(
            f"{waiting} of your webhook events are not delivered yet, the limit; leave `webhook` "
            "out and poll, or have the operator look why they are not taken",
            retry_after,
        )


class RateLimitError(QuotaError):
    """The client asks too often."""

    code = "rate_limited"


class AppBrokenError(RequestError):
    """The app's checkpoint could not be loaded; the next step is a redeploy."""

    code = "app_broken"

    def __init__(self, app: str, reason: str) -> None:
        super().__init__(
            f"The app '{app}' cannot load its checkpoint: {reason} "
            "Mend the file and deploy it again (bash deploy_sd.sh FILE.safetensors)."
        )
        self.reason = reason


class UnauthorizedError(SdServeError):
    """The request shows no API key that is valid now."""

    code = "unauthorized"

    def __init__(self, *, is_token_given: bool) -> None:
        reason = (
            "This API key is not valid, or no longer"
            if is_token_given
            else "This server asks for an API key"
        )
        super().__init__(
            f"{reason}: send 'Authorization: Bearer sd_...' with one that "
            "`bash deploy_scripts/api_keys.sh create NAME` has made."
        )
        self.is_token_given = is_token_given


class KeyNotFoundError(SdServeError):
    """No API key has this id."""

    code = "key_not_found"

    def __init__(self, key_id: str) -> None:
        super().__init__(f"No API key has the id '{key_id}': `api_keys.sh list` shows all.")


class KeyRevokedError(SdServeError):
    """A revoked API key is not changed any more."""

    code = "key_revoked"

    def __init__(self, key_id: str) -> None:
        super().__init__(f"The API key '{key_id}' has been revoked: create another.")


class JobNotFoundError(SdServeError):
    """No job has this id."""

    code = "job_not_found"

    def __init__(self, job_id: str) -> None:
        super().__init__(f"No job has the id '{job_id}': check the id in the 202 answer.")


class JobExpiredError(SdServeError):
    """The job was there, its record or result has expired."""

    code = "job_expired"

    def __init__(self, job_id: str) -> None:
        super().__init__(f"Job {job_id} has expired: its result is gone, submit it again.")


class BatchNotFoundError(SdServeError):
    """No batch has this id, or it is no longer kept."""

    code = "batch_not_found"

    def __init__(self, batch_id: str) -> None:
        super().__init__(
            f"No batch has the id '{batch_id}', or it is no longer kept: check the id in the 202 "
            "answer."
        )


class BatchEndedError(SdServeError):
    """Every line of the batch has ended."""

    code = "batch_is_final"

    def __init__(self, batch_id: str) -> None:
        super().__init__(f"Batch {batch_id} has ended already: there is nothing to cancel.")


class GenerationError(SdServeError):
    """A job that cannot be done. Its message becomes the job's error."""

    code = "generation_failed"


class OutOfMemoryError(GenerationError):
    """The device has too little memory for this size."""

    code = "out_of_memory"


class ResultTooLargeError(GenerationError):
    """The images are larger than the result limit."""

    code = "result_too_large"


class StoreUnavailableError(SdServeError):
    """Redis cannot be reached, or has settings that would lose jobs."""

    code = "store_unavailable"
    job_id: str | None = None  # of the request's job, when that had been accepted before


class StoreFullError(StoreUnavailableError):
    """Redis takes nothing more: its memory is used up."""

    code = "store_full"


class RedisServerError(SdServeError):
    """The embedded Redis server cannot be started or reached."""

    code = "redis_server"
