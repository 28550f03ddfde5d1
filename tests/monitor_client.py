"""Asks a daemon's monitor, at monitor.sock, and reads what it answers with prometheus-client's parsers."""

from __future__ import annotations

import http.client
import json
import socket
from pathlib import Path
from typing import Any

from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

METRICS = "/monitoring/prometheus/metrics"


class Monitor:
    """Of the daemon whose state directory this is."""

    def __init__(self, state: Path) -> None:
        self._socket = str(state / "monitor.sock")

    def get(self, path: str, **headers: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("localhost", timeout=20)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(20)
        connection.sock.connect(self._socket)
        try:
            connection.request("GET", path, headers=headers)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def json(self, path: str) -> Any:
        return json.loads(self.get(path)[1])

    def model(self, name: str) -> Any:
        return next(model for model in self.json("/status.json")["models"] if model["name"] == name)

    def samples(self, *, openmetrics: bool = False) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        if openmetrics:
            families = parse_openmetrics(self.get(METRICS, Accept="application/openmetrics-text")[1].decode())
        else:
            families = parse_text(self.get(METRICS)[1].decode())
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in families
            for sample in family.samples
        }

    def value(self, name: str, **labels: str) -> float:
        return self.samples().get((name, frozenset(labels.items())), 0.0)

    def total(self, name: str, **labels: str) -> float:
        """Of all samples with at least these labels."""
        wanted = set(labels.items())
        return sum(value for (found, has), value in self.samples().items() if found == name and wanted <= has)
