"""What stands before the routes of both applications, and in which order."""

from collections.abc import Collection

from fastapi import FastAPI

from api.body_limit import BodyLimit
from api.edge import Edge
from api.host_check import HostCheck
from api.job_routes import JobRoutes
from api.key_check import KeyCheck
from api.plain_poll import PlainPoll
from api.problems import install

HEALTH = "/v1/health"
# For probes, which have no key.
PROBES = (HEALTH, f"{HEALTH}/live", f"{HEALTH}/ready")


def add_layers(app: FastAPI, edge: Edge, jobs: JobRoutes, streaming: Collection[str] = ()) -> None:
    """Check the host, then the key, then the size of the body: the last that is added is first.

    Args:
        app: that they are put before.
        edge: where keys are known.
        jobs: routes of `app`, of which the plain poll takes the shortest way.
        streaming: paths that read their own bodies.
    """
    settings = edge.settings
    install(app)
    app.state.callers = edge.callers
    app.state.held = edge.held
    app.add_middleware(PlainPoll, jobs=jobs)
    app.add_middleware(
        BodyLimit,
        max_bytes=settings.max_body_bytes,
        patience=settings.body_timeout,
        streaming=streaming,
    )
    described = (app.openapi_url, app.docs_url, app.redoc_url, app.swagger_ui_oauth2_redirect_url)
    app.add_middleware(
        KeyCheck, callers=edge.callers, open_paths=[*PROBES, *filter(None, described)]
    )
    if not settings.is_key_required:
        app.add_middleware(HostCheck, hosts=settings.hosts)
