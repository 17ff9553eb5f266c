"""Every kind and type of checkpoint over the real path: deployed, POSTed to, drawn, offline.

The stack of these tests can reach no model hub and has an empty cache (conftest.py).
"""

from pathlib import Path

import pytest

from tests.acceptance.conftest import Stack
from tests.acceptance.server import Server, pixels
from tools.make_checkpoint import DTYPES, KINDS, make_checkpoint

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(900)]

PROMPT = "a red circle on a blue background"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kinds", [KINDS[k : k + 5] for k in range(0, len(KINDS), 5)])
def test_every_kind_draws_in_every_type(
    stack: Stack, server: Server, tmp_path: Path, kinds: tuple[str, ...], dtype: str
) -> None:
    files = [
        make_checkpoint(tmp_path / f"{kind}-{dtype}.safetensors", kind, dtype=dtype)
        for kind in kinds
    ]
    apps = {f"sd-{kind}-{dtype}": kind for kind in kinds}
    deployed = stack.deploy_sd(*map(str, files))
    assert deployed.returncode == 0, deployed.stderr
    try:
        # All at once: they take turns on the CPUs, idle ones are evicted for waiting ones.
        ids = {app: server.submit(app, prompt=PROMPT, num_inference_steps=2) for app in apps}
        for app, kind in apps.items():
            job = server.finished(ids[app])
            assert job["status"] == "succeeded", job
            picture = pixels(job["result"]["image"])
            assert picture.shape == (64, 64, 3)
            assert picture.std() > 0
            assert server.get(f"/{app}/v1/models").json()["data"][0]["family"] == kind
    finally:
        for app in apps:
            assert stack.deploy_sd("--delete", app).returncode == 0
