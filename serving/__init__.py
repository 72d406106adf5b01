"""Doors to a runner for clients of other processes: HTTP, Triton, Ray. Each is glue around `runner/batcher.py`."""
