# The image of all our processes: Ray head with Serve and the gateway, Ray nodes, RQ workers.
# On a GPU host torch==2.13.0 resolves to its CUDA build: run with the NVIDIA container toolkit.
FROM python:3.11-slim-bookworm

RUN useradd --create-home --uid 1000 sdserve
WORKDIR /app

# The dependencies first: they change rarely and weigh gigabytes.
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY sdserve/__init__.py sdserve/__init__.py
RUN mkdir api workers deploy_scripts \
    && pip install --no-cache-dir -c constraints.txt -e '.[gpu]'

COPY api api
COPY workers workers
COPY sdserve sdserve
COPY deploy_scripts deploy_scripts
COPY deploy_sd.sh ./

ENV SD_STATE_DIR=/var/lib/sdserve \
    SD_MODELS_DIR=/data/models/stablediffusion \
    SD_HTTP_HOST=0.0.0.0 \
    HF_HUB_OFFLINE=1 \
    RAY_AUTH_MODE=disabled \
    RAY_USAGE_STATS_ENABLED=0 \
    PYTHONUNBUFFERED=1
RUN install -d -o sdserve -g sdserve /var/lib/sdserve
USER 1000
VOLUME /var/lib/sdserve
EXPOSE 8000

CMD ["python", "-m", "deploy_scripts.stack", "up", "--foreground", "--no-worker"]
