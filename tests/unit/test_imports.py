"""What must start fast starts without the GPU stack (4.8 s of imports)."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "module",
    ["sdserve.jobs", "sdserve.store", "api.ingress", "api.gateway", "deploy_scripts.deploy",
     "deploy_scripts.deploy_sd", "deploy_scripts.submit_batch", "workers.replica", "workers.main"],
)  # fmt: skip
def test_importing_it_does_not_import_torch(module: str) -> None:
    code = f"import sys, {module}; print(','.join({{'torch', 'diffusers'}} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip() == ""


def test_the_client_needs_no_part_of_the_server() -> None:
    server = "{'redis', 'rq', 'ray', 'fastapi', 'starlette', 'pydantic_settings', 'torch', 'yaml'}"
    code = f"import sys, sdserve.client; print(','.join({server} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip() == ""
