"""What the workshop's commands tell the user."""

from __future__ import annotations

from fastserve.errors import FastServeError


class WorkshopError(FastServeError):
    """A model cannot be exported, profiled or optimized: which part of it, why, and what to do."""
