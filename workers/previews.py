"""Shows what a watched job is drawing: small, seldom, beside its next step."""

import io
import logging
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from time import monotonic
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sdserve.errors import StoreUnavailableError
from sdserve.jobs import ClaimedJob, Preview
from sdserve.operations import Pulse, ShowPreview
from sdserve.store import RedisJobStore
from workers.heartbeat import Heartbeat
from workers.run import JobRun

if TYPE_CHECKING:  # imported with the first preview
    from PIL import Image

log = logging.getLogger(__name__)

INTERVAL = 0.5  # seconds between two of a job
TTL = timedelta(seconds=10)  # the next one has come by then, or nobody watches any more
MAX_BYTES = 8 * 1024
QUALITY, LOW_QUALITY = 70, 30  # of WebP


class Previews:
    """One thread of its own. Nothing is done for a job that nobody watches."""

    def __init__(self, app: str, store: RedisJobStore, heart: Heartbeat) -> None:
        self._app = app
        self._store = store
        self._heart = heart
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="preview")
        self._given_up = False

    def wants(self, run: JobRun) -> bool:
        """Whether the next step of this run is to be shown."""
        is_shown = run.preview is None or run.preview.done()
        is_due = is_shown and monotonic() - run.preview_at >= INTERVAL
        return is_due and not self._given_up and self._heart.pulse(run.job) is Pulse.WATCHED

    def show(self, run: JobRun, pixels: NDArray[np.uint8]) -> None:
        """Show these pixels [h, w, 3] as the picture that the run is at."""
        run.preview_at = monotonic()
        step, number = run.steps_done, len(run.pictures)
        run.preview = self._thread.submit(self._show, run.job, step, number, pixels)

    def give_up(self) -> None:
        """Show no more: this model cannot be shown."""
        self._given_up = True

    def close(self) -> None:
        """Take nothing more."""
        self._given_up = True
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _show(self, job: ClaimedJob, step: int, number: int, pixels: NDArray[np.uint8]) -> None:
        try:
            preview = Preview(step=step, number=number, image=encode_preview(pixels))
            self._store.run(
                ShowPreview(app=self._app, job_id=job.id, fence=job.fence, preview=preview, ttl=TTL)
            )
        except StoreUnavailableError as error:  # away, or full: then there is no room for these
            log.info("job %s: no preview now: %s", job.id, error)
        except Exception:
            log.exception("job %s: its preview failed", job.id)


def encode_preview(pixels: NDArray[np.uint8]) -> bytes:
    """Pixels [h, w, 3], at most 128 a side, as WebP of at most MAX_BYTES."""
    from PIL import Image

    image = Image.fromarray(pixels)
    data = _webp(image, QUALITY)
    while len(data) > MAX_BYTES:  # noise: the fewer pixels, the more there is to see
        data = _webp(image, LOW_QUALITY)
        image = image.reduce(2)
    return data


def _webp(image: "Image.Image", quality: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=quality, method=2)
    return buffer.getvalue()
