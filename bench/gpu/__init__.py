"""The engine beside plain diffusers on a GPU: `python -m bench.gpu`, by itself and unattended."""
