"""Ray Serve's own Stable Diffusion example, with a local file and the same request as the others.

From the Ray documentation, "Serve a Stable Diffusion Model": an `APIIngress` (FastAPI) that calls a
model deployment by its handle. Kept: the two deployments, one ingress replica, `GET /imagine`.
Changed: the checkpoint is a local file, the CPU instead of a GPU, the parameters of `Request` in
the query, one warm replica instead of none (`min_replicas`). It runs on the cluster of the stack
that it is compared with, behind the same proxy.

    python -m bench.peers.ray_peer --address HOST:PORT --model FILE
"""

import argparse
from pathlib import Path
from typing import Any

import ray
from fastapi import FastAPI, Response
from ray import serve

from bench.peers.drawing import Drawer, Request

APP = "peer-ray"
app = FastAPI()


class APIIngress:
    """The example's, with its name."""

    def __init__(self, diffusion_model_handle: Any) -> None:
        self.handle = diffusion_model_handle

    @app.get("/imagine")
    async def generate(
        self,
        prompt: str,
        num_inference_steps: int,
        guidance_scale: float,
        width: int,
        height: int,
        seed: int,
    ) -> Response:
        request = Request(
            prompt=prompt,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            width=width,
            height=height,
            seed=seed,
        )
        content = await self.handle.generate.remote(request)
        return Response(content, media_type="image/png")


class StableDiffusion:
    """The example's StableDiffusionV2."""

    def __init__(self, model: str, threads: int) -> None:
        self._drawer = Drawer(Path(model), threads)

    def generate(self, request: Request) -> bytes:
        return self._drawer.draw_png(request)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--address", required=True)
    parser.add_argument("--namespace", default="sdserve")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    ray.init(address=options.address, namespace=options.namespace, log_to_driver=False)
    model = serve.deployment(
        ray_actor_options={"num_cpus": 1},
        autoscaling_config={"min_replicas": 1, "max_replicas": 1},
    )(StableDiffusion).bind(str(options.model.resolve()), options.threads)
    ingress = serve.deployment(num_replicas=1, ray_actor_options={"num_cpus": 0})(
        serve.ingress(app)(APIIngress)
    )
    serve.run(ingress.bind(model), name=APP, route_prefix=f"/{APP}")


if __name__ == "__main__":
    main()
