"""--monitoring_config_file: where Prometheus finds the metrics.

The file is a MonitoringConfig as text: prometheus_config { enable: true path: "/metrics" }.
"""

from __future__ import annotations

from fastserve.compat.draft import Draft
from fastserve.compat.flags import Flags
from fastserve.text_proto import read_text_proto

_FLAG = "--monitoring_config_file"


def add_monitoring(draft: Draft, flags: Flags) -> None:
    """[monitoring]. Without a path it is the default, which is TensorFlow Serving's."""
    file = flags.text("monitoring_config_file")
    if not file:
        return
    with draft.trying():
        prometheus = read_text_proto(file, "tensorflow.serving.MonitoringConfig").message.prometheus_config
        if not prometheus.enable:
            draft.note(f"{_FLAG} has no effect: {file} has no prometheus_config {{ enable: true }}")
            return
        if prometheus.path:
            draft.set("monitoring", "metrics_path", prometheus.path, _FLAG)
        if not flags.number("rest_api_port"):
            draft.note(
                f"{_FLAG}: metrics are served on --rest_api_port, which is not given; they are on "
                "monitor.sock in the state directory"
            )
