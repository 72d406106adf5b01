"""Another name of `arforge.runner.bundle.writer`, for callers of before."""

from arforge.runner.bundle.writer import staged

__all__ = ["staged"]
