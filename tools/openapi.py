"""Write docs/openapi/app.json and gateway.json: the OpenAPI descriptions, as they are served.

python -m tools.openapi            write them
python -m tools.openapi --check    say whether they are up to date
"""

import argparse
import json
import sys
from datetime import timedelta
from pathlib import Path

from fastapi import FastAPI

from api import gateway, ingress
from api.edge import Edge, EdgeSettings
from sdserve.apps import AppSpec, app_name
from sdserve.checkpoints import inspect_checkpoint

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "openapi"
CHECKPOINT = ROOT / "demo_models" / "tiny-shapes-sd15.safetensors"  # its sizes are in app.json


def descriptions() -> dict[str, str]:
    """The text of each file, by its name."""
    # Nothing connects before an application is served.
    settings = EdgeSettings(
        redis_url="redis://127.0.0.1:6379/0", job_ttl=timedelta(), sync_wait=timedelta()
    )
    checkpoint, defaults = inspect_checkpoint(CHECKPOINT)
    spec = AppSpec(
        name=app_name(CHECKPOINT),
        checkpoint=checkpoint,
        defaults=defaults,
        num_gpus=0,
        num_cpus=1,
    )
    return {
        "app.json": _text(ingress.create_app(spec, Edge(settings))),
        "gateway.json": _text(gateway.create_app(settings)),
    }


def stale() -> list[Path]:
    """The committed files that are not what the code serves."""
    return [
        FOLDER / name
        for name, text in descriptions().items()
        if not (FOLDER / name).exists() or (FOLDER / name).read_text() != text
    ]


def _text(app: FastAPI) -> str:
    return json.dumps(app.openapi(), indent=1, ensure_ascii=False) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description="Write docs/openapi/*.json.")
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if out of date")
    if parser.parse_args().check:
        for path in (found := stale()):
            print(f"{path.relative_to(ROOT)} is out of date: run python -m tools.openapi")
        return 1 if found else 0
    FOLDER.mkdir(exist_ok=True)
    for name, text in descriptions().items():
        (FOLDER / name).write_text(text)
        print(FOLDER / name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
