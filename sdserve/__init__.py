"""The shared kernel: values, names, the job store and its scripts. Never ray, fastapi or torch."""

__version__ = "0.1.0"
