"""Web pages of other sites, and names that are not ours, get nothing from a server without keys."""

from collections.abc import Iterator, Mapping

import pytest
from redis import Redis

from api import gateway
from sdserve.host_names import HostNames
from tests.http_app import PROMPT, HttpApp, edge_settings, one_app
from tests.values import spec

pytestmark = pytest.mark.integration

CROSS = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"}
LINK = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}


@pytest.fixture(params=["app", "gateway"])
def app(request: pytest.FixtureRequest, redis: Redis, redis_url: str) -> Iterator[HttpApp]:
    settings = edge_settings(redis_url, hosts=HostNames.parse("sd.example.com"))
    is_app = request.param == "app"
    with HttpApp(one_app(spec(), settings) if is_app else gateway.create_app(settings)) as one:
        yield one


def asked(app: HttpApp, headers: Mapping[str, str], method: str = "GET") -> tuple[int, str]:
    """Status and type of the answers of all routes, which are the same."""
    paths = ("/v1/health", "/v1/models", "/v1/jobs", "/docs", "/openapi.json", "/no/such/route")
    answers = [app.http.request(method, path, headers=headers, json=PROMPT) for path in paths]
    told = {(answer.status_code, answer.json()["type"].rpartition(":")[2]) for answer in answers}
    (only,) = told
    return only


def test_a_name_that_is_not_ours_is_told_what_to_do(app: HttpApp) -> None:
    assert asked(app, {"Host": "evil.example:8000"}) == (421, "unknown_host")
    detail = app.http.get("/v1/models", headers={"Host": "evil.example"}).json()["detail"]
    assert "SD_ALLOWED_HOSTS" in detail
    for host in ("localhost:1", "127.0.0.1", "192.168.0.7:8000", "sd.example.com"):
        assert app.http.get("/v1/models", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [CROSS, {"Origin": "https://evil.example"}, {"Origin": "null"}, CROSS | {"Origin": "null"}],
)
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_pages_of_other_sites_are_refused(
    method: str, headers: Mapping[str, str], app: HttpApp
) -> None:
    assert asked(app, headers, method) == (403, "cross_site")


def test_links_and_pages_of_ours_are_not(app: HttpApp) -> None:
    own = {"Sec-Fetch-Site": "same-origin", "Origin": f"http://127.0.0.1:{app.port}"}
    for headers in (
        {},
        own,
        {"Sec-Fetch-Site": "none"},
        LINK,
        {"Origin": "https://sd.example.com"},
    ):
        assert app.http.get("/v1/models", headers=headers).status_code == 200
    assert app.http.post("/v1/nothing", headers=LINK).status_code == 403


def test_with_keys_any_name_is_good(redis: Redis, redis_url: str) -> None:
    """A page has no key to show: it gets 401 under every name."""
    with HttpApp(gateway.create_app(edge_settings(redis_url, is_key_required=True))) as locked:
        headers = {"Host": "sd.example.org", "Origin": "https://evil.example"}
        assert locked.http.get("/v1/health", headers=headers).status_code == 200
        assert locked.http.get("/v1/jobs", headers=headers).status_code == 401
