"""Ids and names."""

import json
import time
from pathlib import Path
from uuid import UUID

import pytest

from sdserve.apps import app_name, name_apps
from sdserve.errors import AppNameCollisionError
from sdserve.generation import GenerationParams
from sdserve.jobs import JobStatus, is_job_id, new_job_id
from tests.values import params, spec


def test_ids_are_uuid_version_7_and_in_order_of_time() -> None:
    before = time.time_ns() // 1_000_000
    ids = [new_job_id() for _ in range(100)]
    for job_id in ids:
        value = UUID(job_id)
        assert (value.version, value.variant) == (7, "specified in RFC 4122")
        assert before <= value.int >> 80 <= time.time_ns() // 1_000_000
    assert len(set(ids)) == 100


@pytest.mark.parametrize("text", ["", "x", "../../etc", "*", "ABCDEF", f"{{{UUID(int=0)}}}"])
def test_other_texts_are_no_ids(text: str) -> None:
    assert not is_job_id(text)


def test_only_the_ends_are_final() -> None:
    final = {status for status in JobStatus if status.is_final}
    assert final == {JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED}


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("sd_xl_base_1.0.safetensors", "sd-sd-xl-base-1-0"),
        ("v1-5-pruned-emaonly.safetensors", "sd-v1-5-pruned-emaonly"),
        ("Dream Shaper (8).safetensors", "sd-dream-shaper-8"),
        ("___.safetensors", "sd-model"),
    ],
)
def test_apps_are_named_after_their_files(file: str, name: str) -> None:
    assert app_name(Path(file)) == name


def test_two_files_of_one_name_are_refused_with_both_paths() -> None:
    first, second = Path("/m/a_b.safetensors"), Path("/m/a-b.safetensors")
    with pytest.raises(AppNameCollisionError, match=r"/m/a_b.*/m/a-b"):
        name_apps([first, second])


def test_parameters_and_specifications_survive_json() -> None:
    for asked in (params(), params(step_cache=3)):
        assert GenerationParams.from_json(asked.to_json()) == asked
        assert asked.to_dict()["step_cache"] == asked.step_cache  # a result tells


def test_a_job_that_an_earlier_version_stored_is_still_known() -> None:
    values = json.loads(params().to_json())
    assert GenerationParams.from_json(json.dumps(values[:-1])) == params()
    for broken in (values[:-2], [*values, 1]):
        with pytest.raises(ValueError, match=r"format|longer"):
            GenerationParams.from_json(json.dumps(broken))
    assert type(spec()).from_json(spec().to_json()) == spec()
