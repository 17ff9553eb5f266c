"""What docker-compose.yml promises, read from the file: no engine runs in the tests."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from sdserve.settings import Auth, Settings
from workers.task_queue import QueueName

ROOT = Path(__file__).parent.parent.parent
WORKERS = [f"worker-{queue}" for queue in QueueName]


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]


def test_redis_keeps_jobs_and_has_a_password(services: dict[str, Any]) -> None:
    command = " ".join(services["redis"]["command"])
    for part in ("--appendonly yes", "--maxmemory-policy noeviction", "--requirepass"):
        assert part in command
    assert services["redis"]["volumes"] == ["redis:/data"]
    assert "ports" not in services["redis"]


def test_secrets_come_from_the_environment(services: dict[str, Any]) -> None:
    assert services["redis"]["environment"]["REDIS_PASSWORD"].startswith("${REDIS_PASSWORD:?")
    for name in ("ray-gpu", "ray-cpu", *WORKERS):
        assert "${REDIS_PASSWORD:?" in services[name]["environment"]["REDIS_URL"]


@pytest.mark.parametrize("name", ["ray-gpu", "ray-cpu"])
def test_models_are_read_only_and_the_port_is_on_loopback(
    services: dict[str, Any], name: str
) -> None:
    models, _state = services[name]["volumes"]
    assert models.endswith(":/data/models/stablediffusion:ro")
    assert services[name]["ports"] == ["${SD_BIND:-127.0.0.1}:${SD_HTTP_PORT:-8000}:8000"]


@pytest.mark.parametrize("name", ["ray-gpu", "ray-cpu"])
def test_a_container_asks_for_an_api_key_unless_it_is_told_not_to(
    services: dict[str, Any], name: str
) -> None:
    assert services[name]["environment"]["SD_AUTH"] == "${SD_AUTH:-auto}"
    assert services[name]["environment"]["SD_ALLOWED_HOSTS"] == "${SD_ALLOWED_HOSTS:-}"
    assert "SD_HTTP_HOST=0.0.0.0" in (ROOT / "Dockerfile").read_text()
    assert Settings(auth=Auth.AUTO, http_host="0.0.0.0").is_key_required  # noqa: S104 (not bound)


def test_a_gpu_is_reserved_unless_the_cpu_profile_is_chosen(services: dict[str, Any]) -> None:
    (device,) = services["ray-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])
    assert (services["ray-gpu"]["profiles"], services["ray-cpu"]["profiles"]) == (["gpu"], ["cpu"])
    assert "deploy" not in services["ray-cpu"]


@pytest.mark.parametrize("queue", QueueName)
def test_every_queue_has_a_worker(services: dict[str, Any], queue: QueueName) -> None:
    worker = services[f"worker-{queue}"]
    assert worker["command"] == ["python", "-m", "workers.main", queue]
    assert worker["profiles"] == ["gpu", "cpu"]


def test_every_service_has_a_health_check(services: dict[str, Any]) -> None:
    assert all("healthcheck" in service for service in services.values())


def test_the_image_takes_pinned_packages_and_no_root() -> None:
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    assert any("-c constraints.txt" in line for line in lines)
    assert "USER 1000" in lines
