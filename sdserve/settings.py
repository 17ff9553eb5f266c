"""The settings of every command and process, read from the environment once, by its `main`."""

from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import Annotated

from platformdirs import user_state_path
from pydantic import AfterValidator, BeforeValidator, Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from sdserve.errors import SdServeError
from sdserve.host_names import HostNames
from sdserve.limits import BatchLimits, Limits, Quotas, Rate, ResultBudget
from sdserve.loopback import is_loopback
from sdserve.secret import Secret
from sdserve.webhook_signature import parse_secrets
from sdserve.webhook_targets import WebhookTargets


class SettingsError(SdServeError):
    """An environment variable cannot be read."""

    code = "invalid_settings"


def _seconds(value: object) -> object:
    return float(value) if isinstance(value, str) else value


Seconds = Annotated[timedelta, BeforeValidator(_seconds)]


def _rate(value: object) -> object:
    return Rate.parse(value) if isinstance(value, str) else value


RequestRate = Annotated[Rate, BeforeValidator(_rate)]


def _secrets(text: str) -> Secret:
    parse_secrets(text)
    return Secret(text)


def _targets(text: str) -> str:
    WebhookTargets.parse(text)
    return text


def _hosts(text: str) -> str:
    HostNames.parse(text)
    return text


class Auth(StrEnum):
    """Whether requests need an API key."""

    AUTO = "auto"  # unless only this machine can reach us
    ON = "on"
    OFF = "off"


class Proxy(StrEnum):
    """What takes HTTP requests in front of the applications."""

    AUTO = "auto"  # HAProxy where it can run
    HAPROXY = "haproxy"
    SERVE = "serve"  # Ray Serve's own


class Settings(BaseSettings):
    """Values of the environment. Times are seconds there."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", populate_by_name=True)

    redis_url: Annotated[str, AfterValidator(Secret)] | None = Field(
        default=None, validation_alias="REDIS_URL"
    )
    ray_address: str | None = Field(default=None, validation_alias="RAY_ADDRESS")
    http_host: str = Field(default="127.0.0.1", validation_alias="SD_HTTP_HOST")
    auth: Auth = Field(default=Auth.AUTO, validation_alias="SD_AUTH")
    allowed_hosts: Annotated[str, AfterValidator(_hosts)] = Field(
        default="", validation_alias="SD_ALLOWED_HOSTS"
    )
    http_port: int = Field(default=8000, ge=1, le=65535, validation_alias="SD_HTTP_PORT")
    proxy: Proxy = Field(default=Proxy.AUTO, validation_alias="SD_PROXY")
    http_processes: int = Field(default=2, ge=1, le=64, validation_alias="SD_HTTP_PROCESSES")
    access_log: bool = Field(default=False, validation_alias="SD_ACCESS_LOG")
    models_dir: Path = Field(
        default=Path("/data/models/stablediffusion"), validation_alias="SD_MODELS_DIR"
    )
    state_dir: Path = Field(
        default_factory=lambda: user_state_path("sdserve"), validation_alias="SD_STATE_DIR"
    )
    lease: Seconds = Field(
        default=timedelta(seconds=15), ge=timedelta(seconds=1), validation_alias="SD_LEASE"
    )
    job_ttl: Seconds = Field(
        default=timedelta(hours=24), ge=timedelta(minutes=1), validation_alias="SD_JOB_TTL"
    )
    result_ttl: Seconds = Field(
        default=timedelta(hours=1), ge=timedelta(minutes=1), validation_alias="SD_RESULT_TTL"
    )
    step_timeout: Seconds = Field(
        default=timedelta(minutes=2), ge=timedelta(seconds=1), validation_alias="SD_STEP_TIMEOUT"
    )
    load_timeout: Seconds = Field(
        default=timedelta(minutes=10), ge=timedelta(seconds=1), validation_alias="SD_LOAD_TIMEOUT"
    )
    max_result_bytes: int = Field(
        default=32 * 2**20, ge=2**20, validation_alias="SD_MAX_RESULT_BYTES"
    )
    redis_memory_bytes: int = Field(
        default=2**30, ge=64 * 2**20, validation_alias="SD_REDIS_MEMORY_BYTES"
    )
    result_min_ttl: Seconds = Field(
        default=timedelta(minutes=5), ge=timedelta(0), validation_alias="SD_RESULT_MIN_TTL"
    )
    max_body_bytes: int = Field(default=2**20, ge=2**10, validation_alias="SD_MAX_BODY_BYTES")
    body_timeout: Seconds = Field(
        default=timedelta(seconds=10), ge=timedelta(seconds=1), validation_alias="SD_BODY_TIMEOUT"
    )
    max_jobs: int = Field(default=10_000, ge=1, validation_alias="SD_MAX_JOBS")
    max_jobs_per_key: int = Field(default=1_000, ge=1, validation_alias="SD_MAX_JOBS_PER_KEY")
    max_held_per_key: int = Field(default=500, ge=1, validation_alias="SD_MAX_HELD_PER_KEY")
    max_queued_per_key: int | None = Field(
        default=None, ge=1, validation_alias="SD_MAX_QUEUED_PER_KEY"
    )
    max_images_per_day: int | None = Field(
        default=None, ge=1, validation_alias="SD_MAX_IMAGES_PER_DAY"
    )
    max_gpu_seconds_per_day: int | None = Field(
        default=None, ge=1, validation_alias="SD_MAX_GPU_SECONDS_PER_DAY"
    )
    rate_limit: RequestRate | None = Field(default=None, validation_alias="SD_RATE_LIMIT")

    max_webhooks_per_key: int = Field(
        default=10_000, ge=1, validation_alias="SD_MAX_WEBHOOKS_PER_KEY"
    )
    webhook_secrets: Annotated[str, AfterValidator(_secrets)] = Field(
        default=Secret(), validation_alias="SD_WEBHOOK_SECRETS"
    )
    webhook_allow: Annotated[str, AfterValidator(_targets)] = Field(
        default="", validation_alias="SD_WEBHOOK_ALLOW"
    )

    @property
    def webhook_targets(self) -> WebhookTargets | None:
        """Where webhooks may go; None: there are none, for nothing could sign them."""
        return WebhookTargets.parse(self.webhook_allow) if self.webhook_secrets else None

    @property
    def hosts(self) -> HostNames:
        """The names by which a server without API keys may be asked."""
        names = HostNames.parse(self.allowed_hosts).names
        return HostNames(names=names | {self.http_host.lower()})

    @property
    def is_key_required(self) -> bool:
        """Whether a request must show an API key, as these settings have it."""
        if self.auth is not Auth.AUTO:
            return self.auth is Auth.ON
        return not is_loopback(self.http_host)

    max_batch_lines: int = Field(default=100_000, ge=1, validation_alias="SD_MAX_BATCH_LINES")
    max_batch_bytes: int = Field(
        default=64 * 2**20, ge=2**10, validation_alias="SD_MAX_BATCH_BYTES"
    )
    batch_room: int = Field(default=300_000, ge=1, validation_alias="SD_BATCH_ROOM")
    batch_room_per_key: int = Field(default=100_000, ge=1, validation_alias="SD_BATCH_ROOM_PER_KEY")

    @property
    def limits(self) -> Limits:
        return Limits(
            jobs=self.max_jobs,
            client=Quotas(
                jobs=self.max_jobs_per_key,
                queued=self.max_queued_per_key,
                images_per_day=self.max_images_per_day,
                gpu_seconds_per_day=self.max_gpu_seconds_per_day,
                rate=self.rate_limit,
            ),
            webhooks=self.max_webhooks_per_key,
            results=ResultBudget(
                bytes=self.redis_memory_bytes, ttl=self.result_ttl, keep=self.result_min_ttl
            ),
            batches=BatchLimits(
                lines=self.max_batch_lines,
                upload_bytes=self.max_batch_bytes,
                room=self.batch_room,
                client_room=self.batch_room_per_key,
            ),
        )


def read_settings() -> Settings:
    """Read the environment.

    Raises:
        SettingsError: a variable has no valid value; the message names it.
    """
    try:
        return Settings()
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        message = f"The environment variable {name} is wrong: {first['msg']}. Correct or unset it."
        raise SettingsError(message) from error
