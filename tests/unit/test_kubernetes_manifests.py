"""deploy/kubernetes: that every key is Kubernetes' own, and that the parts fit each other and the daemon.

Kubernetes' client is the oracle for the schema; the daemon's own reader is the one for the configuration.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import kubernetes.client as k8s
import pytest
import yaml
from pydantic import ValidationError

from fastserve.cli_check import show
from fastserve.config import Config
from fastserve.config_address import TcpAddress, parse_address
from fastserve.config_read import parse_config
from fastserve.http_paths import MONITOR_PATHS

REPO = Path(__file__).resolve().parents[2]
MANIFESTS = REPO / "deploy" / "kubernetes"
NOT_KUBERNETES_OWN = {"Kustomization", "ServiceMonitor"}

DOCUMENTS = {
    f"{path.name}-{i}": document
    for path in sorted(MANIFESTS.glob("*.yaml"))
    for i, document in enumerate(yaml.safe_load_all(path.read_text()))
}


def the(kind: str, name: str = "fastserve") -> dict[str, Any]:
    (found,) = (
        document
        for document in DOCUMENTS.values()
        if document["kind"] == kind and document["metadata"]["name"] == name
    )
    return found


def container() -> dict[str, Any]:
    (only,) = the("Deployment")["spec"]["template"]["spec"]["containers"]
    return only


def text() -> str:
    return the("ConfigMap")["data"]["config.toml"]


def config() -> Config:
    return parse_config(text(), "/etc/fastserve/config.toml")


def problems(document: dict[str, Any]) -> set[str]:
    """Where a document has a key that Kubernetes does not know, a value of another type, or none at all."""
    version = document["apiVersion"].rpartition("/")[2].capitalize()
    try:
        getattr(k8s, f"{version}{document['kind']}").model_validate(document, strict=True)
    except ValidationError as error:
        return {f"{'.'.join(map(str, wrong['loc']))}: {wrong['type']}" for wrong in error.errors()}
    return set()


@pytest.mark.parametrize("name", [n for n, d in DOCUMENTS.items() if d["kind"] not in NOT_KUBERNETES_OWN])
def test_every_key_is_kubernetes_own_and_none_is_missing(name: str) -> None:
    assert problems(DOCUMENTS[name]) == set()


def test_the_schema_finds_what_is_wrong() -> None:
    document = json.loads(json.dumps(the("Deployment")))
    document["spec"]["template"]["spec"]["containers"][0]["readinesProbe"] = {}
    document["spec"]["replicas"] = "2"
    del document["spec"]["selector"]
    assert problems(document) == {
        "spec.replicas: int_type",
        "spec.selector: missing",
        "spec.template.spec.containers.0.readinesProbe: extra_forbidden",
    }


def test_kustomize_has_every_file() -> None:
    (kustomization,) = (d for d in DOCUMENTS.values() if d["kind"] == "Kustomization")
    present = {path.name for path in MANIFESTS.glob("*.yaml")}
    assert set(kustomization["resources"]) == present - {"kustomization.yaml", "servicemonitor.yaml"}
    assert [image["name"] for image in kustomization["images"]] == [container()["image"]]


def test_the_configuration_is_accepted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    version = tmp_path / "ranker" / "1"
    version.mkdir(parents=True)
    (version / "saved_model.pb").write_bytes(b"")
    (tmp_path / "libtensorflow_cc.so.2").touch()
    here = text().replace('"/models', f'"{tmp_path}') + f'\n[tensorflow]\nlibrary_dir = "{tmp_path}"\n'
    assert show(parse_config(here, str(tmp_path / "config.toml"))) == 0, capsys.readouterr().err


def test_ports_and_probes_are_where_the_daemon_listens() -> None:
    read = config()
    listening = {}
    for name, table in (("grpc", read.server), ("http", read.gateway), ("monitoring", read.monitoring)):
        (address,) = map(parse_address, table.listen)
        assert isinstance(address, TcpAddress) and address.host == "0.0.0.0"
        listening[name] = address.port
    assert {port["name"]: port["containerPort"] for port in container()["ports"]} == listening
    probes = {name: container()[f"{name}Probe"]["httpGet"] for name in ("startup", "liveness", "readiness")}
    assert probes == {
        "startup": {"path": "/healthz", "port": "monitoring"},
        "liveness": {"path": "/healthz", "port": "monitoring"},
        "readiness": {"path": "/readyz", "port": "monitoring"},
    }
    assert {probe["path"] for probe in probes.values()} <= set(MONITOR_PATHS)
    for service in (the("Service"), the("Service", "fastserve-headless")):
        for port in service["spec"]["ports"]:
            assert (port["name"], port["port"]) == (port["targetPort"], listening[port["name"]])


def test_selectors_choose_what_they_are_for() -> None:
    labels = the("Deployment")["spec"]["template"]["metadata"]["labels"]
    for kind in ("Deployment", "PodDisruptionBudget"):
        assert the(kind)["spec"]["selector"]["matchLabels"].items() <= labels.items()
    services = [the("Service"), the("Service", "fastserve-headless")]
    assert all(service["spec"]["selector"].items() <= labels.items() for service in services)

    monitor = the("ServiceMonitor")["spec"]
    wanted = monitor["selector"]["matchLabels"].items()
    (scraped,) = (service for service in services if wanted <= service["metadata"]["labels"].items())
    (endpoint,) = monitor["endpoints"]
    assert endpoint["port"] in {port["name"] for port in scraped["spec"]["ports"]}
    assert endpoint["path"] == config().monitoring.metrics_path


def test_an_update_loses_nothing() -> None:
    spec, server = the("Deployment")["spec"], config().server
    assert spec["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
    # Two drains, one after the other, each with 5 s for its process to end; see control/daemon.py.
    longest_s = server.lame_duck_s + 2 * (server.drain_timeout_s + 5.0)
    assert spec["template"]["spec"]["terminationGracePeriodSeconds"] >= longest_s + 5.0
    # It is out of rotation well before it stops to serve.
    readiness = container()["readinessProbe"]
    assert server.lame_duck_s >= 2 * readiness["periodSeconds"] * readiness["failureThreshold"]


def test_the_pod_is_restricted_and_writes_only_where_it_may() -> None:
    pod = the("Deployment")["spec"]["template"]["spec"]
    context = pod["securityContext"]
    assert context["runAsNonRoot"] is True and context["seccompProfile"] == {"type": "RuntimeDefault"}
    user = re.search(r"^USER (\d+):(\d+)$", (REPO / "Dockerfile").read_text(), re.MULTILINE)
    assert user is not None
    assert (context["runAsUser"], context["runAsGroup"]) == (int(user[1]), int(user[2]))
    assert container()["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    mounts = {mount["name"]: mount for mount in container()["volumeMounts"]}
    assert set(mounts) == {volume["name"] for volume in pod["volumes"]}
    read = config()
    assert mounts["state"]["mountPath"] == read.server.state_dir and "readOnly" not in mounts["state"]
    assert mounts["config"]["mountPath"] == "/etc/fastserve"  # where the image looks for config.toml
    assert all(model.base_path.startswith(mounts["models"]["mountPath"] + "/") for model in read.models)


def test_it_takes_as_many_processors_as_it_asks_for() -> None:
    assert config().executor.threads == int(container()["resources"]["requests"]["cpu"])
