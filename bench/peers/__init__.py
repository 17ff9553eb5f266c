"""What others serve a checkpoint with, each in the settings that its documentation recommends.

They run in .venv-bench (`make bench`), draw with plain diffusers, and answer the same request,
`drawing.Request` as JSON, with the same PNG.
"""
