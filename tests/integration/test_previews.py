"""Previews of a picture on its way: like it, small, seldom, and only where somebody watches."""

import io
import time
from datetime import timedelta
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from redis import Redis

from sdserve import keys
from sdserve.checkpoints import inspect_checkpoint
from sdserve.families import SCHEDULERS
from sdserve.jobs import JobStatus
from sdserve.operations import ViewJob, ViewPreview, Watch
from sdserve.store import RedisJobStore
from tests.values import params_for, replica_settings, spec, submit
from tests.waiting import LIMIT, until
from workers import foresight, previews
from workers.engine import PREVIEW_SIDE, DiffusionEngine
from workers.loading import load_engine
from workers.previews import MAX_BYTES, encode_preview
from workers.puller import Puller

pytestmark = pytest.mark.integration

DEMOS = Path(__file__).parents[2] / "demo_models"
DEMO = DEMOS / "tiny-shapes-sd15.safetensors"
HOUR = timedelta(hours=1)


@pytest.fixture(scope="module")
def engine() -> DiffusionEngine:
    checkpoint, _ = inspect_checkpoint(DEMO)
    return load_engine(checkpoint, device="cpu", threads=1, on_phase=lambda _phase: None)


@pytest.mark.parametrize("scheduler", ["ddim", "euler", "dpmpp_2m_karras", "heun", "unipc", "lcm"])
def test_a_preview_shows_the_picture_long_before_it_is_drawn(
    engine: DiffusionEngine, scheduler: str
) -> None:
    """At a quarter of the way: more like it than any plain picture is."""
    picture = engine.begin(params_for(DEMO, scheduler=scheduler), 0)
    early = None
    while not picture.is_done:
        picture.is_watched = picture.calls_done == len(picture.timesteps) // 4
        engine.step([picture])
        if picture.is_watched:
            assert picture.foreseen is not None
            early = engine.paint(picture.foreseen).astype(float)
    assert early is not None
    size = early.shape[1], early.shape[0]
    drawn = np.asarray(Image.fromarray(engine.decode(picture)).resize(size, Image.Resampling.BOX))
    plain = drawn.astype(float) - drawn.mean(axis=(0, 1))
    assert np.abs(drawn - early).mean() < np.abs(plain).mean() * 1.5
    flat_early = (early - early.mean(axis=(0, 1))).ravel()
    assert np.corrcoef(plain.ravel(), flat_early)[0, 1] > 0.7


@pytest.mark.parametrize("scheduler", sorted(set(SCHEDULERS) - {"flow_euler"}))
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_every_sampler_shows_something_at_zero_terminal_snr(
    engine: DiffusionEngine, scheduler: str, prediction: str
) -> None:
    """At the first step such a model has nothing but noise."""
    picture = engine.begin(params_for(DEMO, scheduler=scheduler), 0)
    name, options = SCHEDULERS[scheduler]
    config = {
        **picture.scheduler.config,
        "prediction_type": prediction,
        "timestep_spacing": "trailing",
        "rescale_betas_zero_snr": True,
    }
    noisy = getattr(diffusers, name).from_config(config, **options)
    noisy.set_timesteps(4)
    for call in range(len(noisy.timesteps)):
        foreseen = foresight.foresee(noisy, call, picture.latents, picture.latents)
        assert bool(torch.isfinite(foreseen).all())


def test_a_preview_that_cannot_be_told_harms_no_job(
    engine: DiffusionEngine, caplog: pytest.LogCaptureFixture
) -> None:
    picture = engine.begin(params_for(DEMO, scheduler="ddim"), 0)
    picture.is_watched = True
    del picture.scheduler.alphas_cumprod  # what `foresee` needs first

    def step(*_args: object, **_options: object) -> tuple[torch.Tensor]:
        return (picture.latents,)

    picture.scheduler.step = step
    engine.step([picture])
    assert picture.foreseen is None
    assert picture.calls_done == 1
    assert "no preview" in caplog.text


def test_watching_changes_no_pixel(engine: DiffusionEngine) -> None:
    pictures = list[NDArray[np.uint8]]()
    for is_watched in (False, True):
        picture = engine.begin(params_for(DEMO, scheduler="euler_a"), 0)
        picture.is_watched = is_watched
        while not picture.is_done:
            engine.step([picture])
        pictures.append(engine.decode(picture))
    plain, watched = pictures
    assert np.array_equal(plain, watched)


@pytest.mark.parametrize("size", [(8, 8), (128, 128), (129, 64), (512, 300)])
def test_a_preview_is_small_whatever_it_shows(size: tuple[int, int]) -> None:
    noise = torch.randn((1, 4, *size), generator=torch.Generator().manual_seed(1)) * 3
    pixels = foresight.paint(
        noise, torch.randn((5, 3), generator=torch.Generator().manual_seed(2)), 128
    )
    assert max(pixels.shape) <= PREVIEW_SIDE
    data = encode_preview(pixels.numpy())
    assert len(data) <= MAX_BYTES
    image = Image.open(io.BytesIO(data))
    assert image.format == "WEBP"
    assert max(image.size) >= min(PREVIEW_SIDE, *size) / 2


class Watched:
    """A replica of the demo app that draws one long job."""

    def __init__(self, redis: Redis, redis_url: str) -> None:
        self.redis = redis
        self.store = RedisJobStore(redis)
        app = spec(checkpoint=inspect_checkpoint(DEMO)[0])
        long = params_for(DEMO, num_inference_steps=150, num_images=2)
        self.id = self.store.run(submit(params=long)).job_id
        self.puller = Puller(app, replica_settings(redis_url), born=time.monotonic())

    @property
    def status(self) -> JobStatus:
        return self.store.run(ViewJob(job_id=self.id)).status

    def end(self) -> JobStatus:
        until(lambda: self.status.is_final)
        self.puller.stop()
        return self.status


def test_a_watched_job_is_shown_twice_a_second_at_most(redis: Redis, redis_url: str) -> None:
    begin = time.monotonic()
    with redis.pubsub() as channel:
        channel.subscribe(keys.CHANNEL + spec().name)
        job = Watched(redis, redis_url)
        job.store.run(Watch(job_id=job.id, span=HOUR))
        until(lambda: job.store.run(ViewPreview(job_id=job.id)))
        shown = job.store.run(ViewPreview(job_id=job.id))
        assert shown
        assert shown.number in (0, 1)
        assert 0 < shown.step <= 300
        assert Image.open(io.BytesIO(shown.image)).format == "WEBP"
        assert job.end() is JobStatus.SUCCEEDED
        seconds, times = time.monotonic() - begin, 0
        while message := channel.get_message(timeout=0.5):
            times += str(message["data"]).endswith("preview'")
    assert 1 <= times <= seconds / previews.INTERVAL + 1
    assert job.store.run(ViewPreview(job_id=job.id)) is None
    assert not redis.keys(keys.PREVIEW + "*")


def test_nothing_is_drawn_for_nobody(
    redis: Redis, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    painted = list[object]()

    def paint(_self: DiffusionEngine, foreseen: object) -> None:
        painted.append(foreseen)

    monkeypatch.setattr(DiffusionEngine, "paint", paint)
    job = Watched(redis, redis_url)
    assert job.end() is JobStatus.SUCCEEDED
    assert painted == []


@pytest.mark.parametrize("fault", ["paint", "encode", "full"])
def test_a_preview_that_fails_harms_nobody(
    redis: Redis, redis_url: str, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    tried = list[object]()

    def fail(*arguments: object) -> None:
        tried.append(arguments)
        raise RuntimeError("no colours today")

    if fault == "paint":
        monkeypatch.setattr(DiffusionEngine, "paint", fail)
    elif fault == "encode":
        monkeypatch.setattr(previews, "encode_preview", fail)
    else:
        show = RedisJobStore.run

        def run(self: RedisJobStore, operation: object) -> object:
            if type(operation).__name__ != "ShowPreview":
                return show(self, operation)  # pyright: ignore[reportArgumentType]
            tried.append(operation)
            redis.config_set("maxmemory", 1)
            try:
                return show(self, operation)  # pyright: ignore[reportArgumentType]
            finally:
                redis.config_set("maxmemory", 0)

        monkeypatch.setattr(RedisJobStore, "run", run)
    job = Watched(redis, redis_url)
    job.store.run(Watch(job_id=job.id, span=HOUR))
    until(lambda: tried, limit=LIMIT)
    assert job.end() is JobStatus.SUCCEEDED
    assert not redis.keys(keys.PREVIEW + "*")
