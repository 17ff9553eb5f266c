"""The HTTP edge: FastAPI applications that know Redis and nothing of the GPU. Never torch."""
