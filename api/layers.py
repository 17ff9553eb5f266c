"""What stands before the routes, and in which order.

Of the gateway: who asks is checked (`add_checks`), then an app's requests go to its own routes
(dispatch.py). Of the gateway's routes and of each app's: `add_layers`.
"""

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
ALIVE = f"{HEALTH}/live"
# For probes, which have no key.
PROBES = (HEALTH, ALIVE, f"{HEALTH}/ready")


def add_layers(app: FastAPI, edge: Edge, jobs: JobRoutes, streaming: Collection[str] = ()) -> None:
    """Limit the body, and take a plain poll on the shortest way: the last that is added is first.

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


def add_checks(app: FastAPI, edge: Edge) -> None:
    """Check the host, then the key. To be added last, so that they are before all else.

    Args:
        app: that they are put before, with the routes of the apps behind it.
        edge: where keys are known.
    """
    # Those of the apps have the same names.
    described = (app.openapi_url, app.docs_url, app.redoc_url, app.swagger_ui_oauth2_redirect_url)
    app.add_middleware(
        KeyCheck, callers=edge.callers, open_paths=[*PROBES, *filter(None, described)]
    )
    if not edge.settings.is_key_required:
        app.add_middleware(HostCheck, hosts=edge.settings.hosts)
