"""HAProxy's configuration: what Ray writes, and what the launcher makes of it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from ray.serve._private.haproxy import BackendConfig, HAProxyApi, HAProxyConfig, ServerConfig
from ray.serve.config import HTTPOptions

from deploy_scripts import haproxy, haproxy_launcher
from deploy_scripts.haproxy_launcher import UnknownConfigurationError, adapt
from deploy_scripts.proxy_choice import ProxyChoice
from sdserve.errors import DeployError
from sdserve.settings import Proxy, Settings

linux = pytest.mark.skipif(sys.platform != "linux", reason="Ray has HAProxy on Linux only")


@pytest.fixture
def configuration(tmp_path: Path) -> Path:
    """The file as the installed Ray writes it for two apps."""
    backends = {
        name: BackendConfig(
            name=name, path_prefix=path, app_name=name, servers=[ServerConfig(name, "127.0.0.1", 1)]
        )
        for name, path in (("gateway", "/"), ("app", "/sd-app"))
    }
    api = HAProxyApi(
        HAProxyConfig(
            http_options=HTTPOptions(host="127.0.0.1", port=8000), socket_path=f"{tmp_path}/s"
        ),
        backends,
        f"{tmp_path}/haproxy.cfg",
    )
    api._generate_config_file_internal()  # pyright: ignore[reportPrivateUsage]
    return tmp_path / "haproxy.cfg"


def test_it_listens_where_the_api_does_and_nowhere_else(configuration: Path) -> None:
    written = configuration.read_text()
    assert written.count("bind ") == 3  # what this test is about
    adapted = adapt(written, configuration.parent)
    binds = [line.split()[1] for line in adapted.splitlines() if line.split()[:1] == ["bind"]]
    assert binds == ["127.0.0.1:8000"]
    assert " mode 600 " in adapted
    assert "666" not in adapted


def test_it_does_not_say_404_before_it_knows_the_routes(configuration: Path) -> None:
    adapted = adapt(configuration.read_text(), configuration.parent)
    assert "status 404" not in adapted
    assert "status 503 default-errorfiles" in adapted


def test_old_connections_are_closed_when_routes_change(configuration: Path) -> None:
    assert "idle-close-on-response" in configuration.read_text()
    assert "idle-close-on-response" not in adapt(configuration.read_text(), configuration.parent)


def test_routes_are_left_as_they_are(configuration: Path) -> None:
    def routes(text: str) -> list[str]:
        words = ("use_backend", "server ", "acl ", "option httpchk")
        return [line for line in text.splitlines() if line.strip().startswith(words)]

    assert routes(configuration.read_text())
    adapted = adapt(configuration.read_text(), configuration.parent)
    assert routes(adapted) == routes(configuration.read_text())


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("listen stats", "listen statistics"),
        ("backend default_backend", "backend fallback"),
        ("frontend http_frontend", "frontend http_frontend\n    bind :9999"),
    ],
)
def test_another_configuration_is_refused(configuration: Path, old: str, new: str) -> None:
    changed = configuration.read_text().replace(old, new)
    with pytest.raises(UnknownConfigurationError):
        adapt(changed, configuration.parent)


@pytest.mark.parametrize(
    ("number", "status", "code"),
    [(502, 502, "answer_lost"), (503, 503, "server_starting"), (504, 502, "answer_lost")],
)
def test_what_haproxy_says_itself_is_a_problem(
    tmp_path: Path, number: int, status: int, code: str
) -> None:
    haproxy_launcher.write_problems(tmp_path)
    head, _, body = (tmp_path / f"{number}.http").read_bytes().partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = dict(line.split(": ") for line in lines)
    assert first.startswith(f"HTTP/1.1 {status} ")
    assert headers["Content-Type"] == "application/problem+json"
    assert int(headers["Content-Length"]) == len(body)
    problem = json.loads(body)
    assert problem["status"] == status
    assert problem["type"] == f"urn:sdserve:problem:{code}"


@linux
def test_haproxy_accepts_what_the_launcher_made(configuration: Path) -> None:
    folder = configuration.parent / "state"
    environment = haproxy.prepare(folder)
    try:
        launcher = environment["RAY_SERVE_HAPROXY_BINARY_PATH"]
        command = [launcher, "-c", "-f", str(configuration)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    finally:
        haproxy.clean_up(folder)
    assert done.returncode == 0, done.stderr
    assert "bind *:" not in configuration.read_text()
    assert not folder.exists()


@linux
def test_what_commands_haproxy_is_in_a_folder_of_this_user_alone(tmp_path: Path) -> None:
    environment = haproxy.prepare(tmp_path / "state")
    again = haproxy.prepare(tmp_path / "state")
    sockets = Path(environment["RAY_SERVE_HAPROXY_SOCKET_PATH"]).parent
    assert sockets.stat().st_mode & 0o777 == 0o700
    assert environment == again
    assert len(f"{sockets}/{'n' * 56}/s.1234567.tmp") < 108
    haproxy.clean_up(tmp_path / "state")
    assert not sockets.exists()


@linux
def test_an_environment_that_is_made_twice_still_runs_haproxy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in haproxy.prepare(tmp_path / "state").items():
        monkeypatch.setenv(name, value)  # as `eval` of `node-env` does
    launcher = haproxy.prepare(tmp_path / "state")["RAY_SERVE_HAPROXY_BINARY_PATH"]
    version = subprocess.run([launcher, "-v"], capture_output=True, timeout=60, text=True)
    assert version.stdout.startswith("HAProxy version")


def test_serve_proxy_is_the_choice_where_haproxy_cannot_be(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RAY_SERVE_HAPROXY_BINARY_PATH", str(tmp_path / "gone"))
    choice = ProxyChoice.make(Settings(proxy=Proxy.AUTO))
    assert choice.proxy is Proxy.SERVE
    assert str(tmp_path / "gone") in str(choice)
    choice.save(tmp_path / "choice")
    assert ProxyChoice.load(tmp_path / "choice") == choice
    with pytest.raises(DeployError, match="gone"):
        ProxyChoice.make(Settings(proxy=Proxy.HAPROXY))


def test_haproxy_does_not_reach_apps_on_one_outer_address() -> None:
    choice = ProxyChoice.make(Settings(http_host="192.0.2.7"))
    assert choice.proxy is Proxy.SERVE
    assert "SD_HTTP_HOST" in choice.reason


def test_serve_proxy_can_be_asked_for() -> None:
    assert ProxyChoice.make(Settings(proxy=Proxy.SERVE)).proxy is Proxy.SERVE


@linux
def test_haproxy_is_the_default() -> None:
    assert ProxyChoice.make(Settings()) == ProxyChoice(proxy=Proxy.HAPROXY)
