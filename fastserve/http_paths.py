"""The fixed paths of the monitor. The gateway passes them on, and no route may have one of them."""

from __future__ import annotations

MONITOR_PATHS = ("/", "/healthz", "/readyz", "/status.json", "/history.json", "/events")
