"""Encoded images: readable, deterministic, carrying their parameters."""

from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from sdserve.generation import GenerationParams, ImageFormat
from workers.images import encode_image

PIXELS = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
PARAMS = GenerationParams(
    prompt="a red circle, größer ☀",
    negative_prompt="blurry",
    num_inference_steps=12,
    guidance_scale=7.5,
    width=64,
    height=48,
    seed=41,
    scheduler="dpmpp_2m_karras",
    num_images=2,
    format=ImageFormat.PNG,
)


@pytest.mark.parametrize("image_format", ImageFormat)
def test_an_image_decodes_to_its_size_and_type(image_format: ImageFormat) -> None:
    encoded = encode_image(PIXELS, image_format, PARAMS, model="tiny", seed=42)
    image = Image.open(BytesIO(encoded.data))
    assert image.size == (64, 48)
    assert Image.MIME[image.format or ""] == encoded.media_type == image_format.media_type
    assert encoded.seed == 42


@pytest.mark.parametrize("image_format", ImageFormat)
def test_same_input_same_bytes(image_format: ImageFormat) -> None:
    first, second = (
        encode_image(PIXELS, image_format, PARAMS, model="tiny", seed=42) for _ in range(2)
    )
    assert first.data == second.data


def test_a_png_is_lossless_and_carries_the_parameters() -> None:
    encoded = encode_image(PIXELS, ImageFormat.PNG, PARAMS, model="tiny", seed=42)
    image = Image.open(BytesIO(encoded.data))
    assert (np.asarray(image) == PIXELS).all()
    assert image.info["parameters"] == (
        "a red circle, größer ☀\n"
        "Negative prompt: blurry\n"
        "Steps: 12, Sampler: DPM++ 2M Karras, CFG scale: 7.5, Seed: 42, Size: 64x48, Model: tiny"
    )


def test_a_png_says_that_it_is_an_approximation() -> None:
    cached = replace(PARAMS, step_cache=2)
    encoded = encode_image(PIXELS, ImageFormat.PNG, cached, model="tiny", seed=42)
    told = Image.open(BytesIO(encoded.data)).info["parameters"]
    assert told.endswith("Model: tiny, Step cache: 2")
