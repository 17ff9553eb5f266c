"""What is served is what the OpenAPI description says: schemathesis against an app and the gateway.

It sends valid and invalid requests, alone and in sequences, to a server over HTTP whose jobs a real
replica draws. SD_SCHEMATHESIS_EXAMPLES=200 (`make fuzz`) looks longer.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI
from redis import Redis

from api import gateway
from sdserve.api_keys import Role
from sdserve.store import RedisJobStore
from tests.http_app import HttpApp, edge_settings, one_app
from tests.keys import bearer, create_key
from tests.served_replica import warm_replica
from tests.values import spec

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
EXAMPLES = os.environ.get("SD_SCHEMATHESIS_EXAMPLES", "5")


@pytest.fixture
def replica(redis: Redis, redis_url: str, tmp_path: Path) -> Iterator[None]:
    with warm_replica(redis, redis_url, tmp_path):
        yield


def app_of_a_checkpoint(redis_url: str) -> FastAPI:
    return one_app(spec(), edge_settings(redis_url, is_key_required=True))


def gateway_app(redis_url: str) -> FastAPI:
    return gateway.create_app(edge_settings(redis_url, is_key_required=True))


@pytest.mark.usefixtures("replica")
@pytest.mark.parametrize("create", [app_of_a_checkpoint, gateway_app])
def test_every_answer_is_declared_and_none_is_a_5xx(
    redis: Redis, redis_url: str, create: Callable[[str], FastAPI], tmp_path: Path
) -> None:
    token = create_key(RedisJobStore(redis), "fuzz", Role.ADMIN)
    (authorization,) = bearer(token).values()
    with HttpApp(create(redis_url)) as app:
        done = subprocess.run(
            [
                sys.executable, "-m", "schemathesis.cli",
                "--config-file", str(ROOT / "tests" / "schemathesis.toml"), "run",
                f"http://127.0.0.1:{app.port}/openapi.json",
                "--header", f"Authorization: {authorization}",
                "--max-examples", EXAMPLES, "--seed", "1", "--generation-deterministic",
                "--request-timeout", "60", "--no-color", "--no-shrink",
            ],
            cwd=tmp_path, capture_output=True, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
