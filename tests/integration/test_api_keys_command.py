"""The command api_keys.sh, as a person and as a script use it."""

import os
import subprocess
from pathlib import Path

import pytest
from redis import Redis

from sdserve.api_keys import ApiKey, Role, Token, read_token
from sdserve.batch_operations import ViewBatch
from sdserve.batches import BatchState
from sdserve.jobs import JobStatus
from sdserve.key_operations import KeyView, ViewKey
from sdserve.limits import Quotas, Rate
from sdserve.operations import Pulse
from sdserve.store import RedisJobStore
from sdserve.webhook_signature import parse_secrets, secrets_of, told
from tests.batch_world import Batches
from tests.store_world import World

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parent.parent.parent


class Command:
    def __init__(self, redis: Redis, redis_url: str, folder: Path) -> None:
        self._store = RedisJobStore(redis)
        self.environment = {
            **os.environ, "REDIS_URL": redis_url, "SD_STATE_DIR": str(folder / "state"),
        }  # fmt: skip

    def __call__(self, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            ["bash", str(ROOT / "deploy_scripts" / "api_keys.sh"), *arguments],
            env=self.environment, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done

    def token(self, *arguments: str) -> Token:
        """The token, which is all that goes to stdout."""
        token = read_token(self(*arguments).stdout.removesuffix("\n"))
        assert token is not None
        return token

    def key(self, token: Token) -> ApiKey:
        key = self.view(token).key
        assert key is not None
        return key

    def view(self, token: Token) -> KeyView:
        return self._store.run(ViewKey(key_id=token.key_id))

    def accepts(self, token: Token) -> bool:
        return self.key(token).accepts(token.secret, self.view(token).now)


@pytest.fixture
def api_keys(redis: Redis, redis_url: str, tmp_path: Path) -> Command:
    return Command(redis, redis_url, tmp_path)


def test_a_key_from_its_making_to_its_end(api_keys: Command) -> None:
    assert api_keys("list").stdout.split() == [
        "ID", "NAME", "ROLE", "STATE", "CREATED", "ROTATED", "QUOTAS",
    ]  # fmt: skip
    first = api_keys.token("create", "ann")
    assert api_keys.accepts(first)
    assert (api_keys.key(first).name, api_keys.key(first).role) == ("ann", Role.USER)

    second = api_keys.token("rotate", first.key_id, "--overlap", "600")
    assert (second.key_id, api_keys.accepts(first)) == (first.key_id, True)
    third = api_keys.token("rotate", first.key_id)
    assert [api_keys.accepts(token) for token in (first, second, third)] == [False, False, True]

    assert "revoked" in api_keys("revoke", first.key_id).stdout
    assert not api_keys.accepts(third)
    line = api_keys("list").stdout.splitlines()[1]
    assert line.split()[:4] == [first.key_id, "ann", "user", "revoked"]
    for token in (first, second, third):
        assert token.secret not in line
    refused = api_keys("rotate", first.key_id, code=1)
    assert refused.stderr == (
        f"error: The API key '{first.key_id}' has been revoked: create another.\n"
    )


def test_a_key_with_a_role_and_quotas(api_keys: Command) -> None:
    token = api_keys.token(
        "create", "the admin", "--admin", "--max-jobs", "5", "--max-queued", "4",
        "--max-images-per-day", "300", "--max-gpu-seconds-per-day", "20", "--rate-limit",
        "10/second",
    )  # fmt: skip
    key = api_keys.key(token)
    assert (key.name, key.role) == ("the admin", Role.ADMIN)
    assert key.quotas == Quotas(
        jobs=5, queued=4, images_per_day=300, gpu_seconds_per_day=20,
        rate=Rate(requests=10, seconds=1),
    )  # fmt: skip
    listed = api_keys("list").stdout
    assert "jobs=5 queued=4 images_per_day=300 gpu_seconds_per_day=20 rate=10/second" in listed


def test_a_keys_quotas_can_be_changed_and_forgotten(api_keys: Command) -> None:
    token = api_keys.token("create", "ann", "--max-jobs", "5", "--max-queued", "4")
    assert "jobs=6 queued=4" in api_keys("set", token.key_id, "--max-jobs", "6").stdout
    assert api_keys.key(token).quotas == Quotas(jobs=6, queued=4)
    api_keys("set", token.key_id, "--defaults", "--max-images-per-day", "9")
    assert api_keys.key(token).quotas == Quotas(images_per_day=9)
    api_keys("revoke", token.key_id)
    assert "has been revoked" in api_keys("set", token.key_id, "--max-jobs", "6", code=1).stderr


def test_revoking_a_key_ends_its_jobs_and_batches_and_nobody_elses(
    api_keys: Command, redis: Redis
) -> None:
    world, client = World(RedisJobStore(redis), redis), api_keys.token("create", "ann").key_id
    batch = Batches(world.store).make(3, client=client)
    world.submit(client=client)
    runs = world.claim()
    waits, others = world.submit(client=client).job_id, world.submit(client="bob").job_id
    assert "and 2 jobs" in api_keys("revoke", client).stdout
    assert world.beat(runs) == [Pulse.CANCEL]
    assert world.view(waits).status is JobStatus.CANCELLED
    assert world.view(others).status is JobStatus.QUEUED
    assert world.run(ViewBatch(batch_id=batch)).state is BatchState.CANCELLED
    assert "revoked" in api_keys("revoke", client).stdout  # again: no harm


def test_a_keys_webhook_secrets_are_told(api_keys: Command) -> None:
    token = api_keys.token("create", "ann")
    off = api_keys("webhook-secret", token.key_id, code=1)
    assert "SD_WEBHOOK_SECRETS" in off.stderr
    configured = ",".join(told(letter * 32) for letter in (b"n", b"o"))
    api_keys.environment["SD_WEBHOOK_SECRETS"] = configured
    new, old = api_keys("webhook-secret", token.key_id).stdout.split()
    own = secrets_of(token.key_id, parse_secrets(configured))
    assert (new, old) == (told(own[0]), told(own[1]))


def test_mistakes_are_one_sentence(api_keys: Command) -> None:
    for command in ("revoke", "rotate", "set", "webhook-secret"):
        unknown = api_keys(command, "nobody", code=1)
        assert unknown.stderr == (
            "error: No API key has the id 'nobody': `api_keys.sh list` shows all.\n"
        )
    for arguments in (
        ["create", ""], ["create", "ann", "--max-jobs", "-1"],
        ["create", "ann", "--rate-limit", "often"], ["rotate", "x", "--overlap", "soon"],
    ):  # fmt: skip
        api_keys(*arguments, code=2)
    assert len(api_keys("list").stdout.splitlines()) == 1
