"""What a gateway process is told at its start. Pure functions of the configuration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from fastserve.config import Config, Model, Route
from fastserve.control.listeners import Listeners


def internal_sockets(config: Config) -> dict[str, str]:
    """The unix sockets on which the core answers the gateway: their transports, by path."""
    if not config.gateway.listen:
        return {}
    state_dir = config.server.state_dir
    return {f"{state_dir}/rest.sock": "rest", f"{state_dir}/web.sock": "web"}


def gateway_settings(config: Config, listeners: Listeners) -> dict[str, Any]:
    """The gateway's first line: see fastserve/gateway/settings.py."""
    gateway, state_dir = config.gateway, config.server.state_dir
    return {
        "listeners": [
            {"fd": listener.socket.fileno(), "address": str(listener.address)}
            for listener in listeners.gateway
        ],
        "rest_socket": f"{state_dir}/rest.sock",
        "web_socket": f"{state_dir}/web.sock",
        "monitor_socket": f"{state_dir}/monitor.sock",
        "metrics_path": config.monitoring.metrics_path,
        "nice": gateway.nice,
        "timeout_s": gateway.timeout_s,
        "drain_timeout_s": config.server.drain_timeout_s,
        "max_connections": config.limits.max_connections,
        "max_body_bytes": gateway.max_body_bytes,
        "max_total_bytes": config.limits.max_total_bytes,
        "cors": gateway.cors,
        "forward": forwarded_headers(config.models),
        "routes": route_settings(config.routes),
        "leaving": False,
    }


def route_settings(routes: Sequence[Route]) -> list[dict[str, Any]]:
    """What the gateway is told of [[routes]]."""
    return [msgspec.to_builtins(route) for route in routes]


def forwarded_headers(models: Sequence[Model]) -> list[str]:
    """The request headers that the core looks at, beside those that it always does."""
    return sorted({model.rollout.sticky_header.lower() for model in models} - {""})
