"""The one HTTP application: the apps under their names, and what is not bound to one of them."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Response

from api import batch_routes
from api.caller import KnownCaller
from api.dispatch import Dispatch
from api.edge import Edge, EdgeSettings
from api.job_routes import JobRoutes
from api.layers import ALIVE, HEALTH, add_checks, add_layers
from api.openapi import Api
from api.schemas import GatewayHealth, ModelBody, ModelList, ProcessAlive
from api.usage_routes import UsageRoutes
from sdserve.errors import AppNotFoundError
from sdserve.operations import ViewOutlooks


def create_app(settings: EdgeSettings) -> FastAPI:
    """The FastAPI application of the gateway, apps included; it runs under any ASGI server."""
    edge = Edge(settings)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncGenerator[None]:
        async with edge.running():
            yield

    app = Api(
        title="sdserve",
        summary="Jobs and models of all deployed Stable Diffusion checkpoints",
        lifespan=lifespan,
    )
    jobs = JobRoutes(edge)
    add_layers(app, edge, jobs, streaming=[batch_routes.ROUTE])
    app.add_middleware(Dispatch, edge=edge)  # before the layers: an app has its own
    add_checks(app, edge)
    app.include_router(jobs.router())
    app.include_router(batch_routes.BatchRoutes(edge).router())
    app.include_router(UsageRoutes(edge.store).router())

    @app.get("/v1/models", tags=["models"], response_model=ModelList)
    async def models(_caller: KnownCaller) -> Response:
        """Every deployed app in the OpenAI list shape."""
        apps = await edge.registry.all()
        outlooks = await edge.store.run(ViewOutlooks(apps=tuple(apps)))
        sha256s = await edge.store.sha256s([spec.checkpoint.file for spec in apps.values()])
        body = ModelList(data=list(map(ModelBody.of, apps.values(), outlooks, sha256s)))
        # Of a thousand apps FastAPI would check each a second time.
        return Response(body.model_dump_json(), media_type="application/json")

    @app.get(HEALTH, tags=["health"])
    async def health() -> GatewayHealth:
        """200 when the job store answers."""
        return GatewayHealth(apps=await edge.store.count_apps())

    @app.get(ALIVE, tags=["health"])
    async def live() -> ProcessAlive:
        """This process answers (liveness probe)."""
        return ProcessAlive()

    @app.post("/{name}/v1/generate", include_in_schema=False)
    async def unknown_app(name: str, _caller: KnownCaller) -> None:
        """Only requests to apps that are not deployed end here: others go to theirs."""
        raise AppNotFoundError(name, list(await edge.store.apps()))

    return app
