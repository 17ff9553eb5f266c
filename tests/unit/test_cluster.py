"""What commands say of a Ray cluster that is not as they know it."""

import pytest
from ray import serve
from ray.exceptions import RayActorError

from deploy_scripts import cluster
from sdserve.errors import DeployError


@pytest.mark.parametrize(
    "error",
    [
        AttributeError("'ServeController' object has no attribute '_details'"),
        RayActorError(),
        ValueError("2 validation errors for ServeInstanceDetails"),
    ],
)
def test_a_serve_of_other_code_is_a_sentence_with_the_next_step(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def status() -> None:
        raise error

    monkeypatch.setattr(serve, "status", status)
    with pytest.raises(DeployError, match=r"make down.*make up"):
        cluster.serve_runs()
