"""deploy/kubernetes: the manifests, by Kubernetes' schemas and by what they mean."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from authws.brokers.urls import SCHEMES
from authws.exceptions import ConfigurationError
from authws.service import doctor
from authws.service.app import create_app
from authws.service.settings import FILED, Settings
from tests.deploy.shipped import DEPLOY, by_module, configured, documents, seconds

HERE = DEPLOY / "kubernetes"
ALTERNATIVE = "autoscaling-by-connections.yaml"
EXAMPLE = "secret.example.yaml"
VERSIONS = ("1.30", "1.34", "1.37")
"""Of Kubernetes: the oldest that the README promises, and the newest that is known."""

DNS_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")
LABELS = {"app.kubernetes.io/name": "authws"}


def kustomization() -> dict[str, Any]:
    (one,) = documents(HERE / "kustomization.yaml")
    return one


def applied() -> list[dict[str, Any]]:
    """What is applied, but for the settings, which kustomize makes."""
    return [
        one for name in kustomization()["resources"] for one in documents(HERE / name)
    ]


def of(kind: str) -> dict[str, Any]:
    (one,) = (resource for resource in applied() if resource["kind"] == kind)
    return one


def pod() -> dict[str, Any]:
    spec = of("Deployment")["spec"]["template"]["spec"]
    assert isinstance(spec, dict)
    return spec


def container() -> dict[str, Any]:
    (one,) = pod()["containers"]
    assert isinstance(one, dict)
    return one


def settings() -> dict[str, str]:
    """What the pods are told by the file of the settings."""
    lines = (HERE / "authws.env").read_text().splitlines()
    said = (line.partition("=") for line in lines if not line.startswith("#"))
    return {name: value for name, _, value in said}


def host() -> str:
    name = urlsplit(settings()["AUTHWS_PUBLIC_ORIGIN"]).hostname
    assert name is not None
    return name


# ------------------------------------------------------------------------- as a whole

VALIDATED = """
import json, sys, kubernetes_validate
for resource in json.load(sys.stdin):
    kubernetes_validate.validate(resource, sys.argv[1], strict=True)
"""


def validated(
    resources: list[dict[str, Any]], version: str
) -> subprocess.CompletedProcess[str]:
    code = VALIDATED.replace("sys.argv[1]", repr(version))
    return by_module("kubernetes_validate", code, json.dumps(resources))


@pytest.mark.parametrize("version", VERSIONS)
def test_every_resource_is_one(version: str) -> None:
    resources = [
        *applied(),
        *documents(HERE / ALTERNATIVE),
        *documents(HERE / EXAMPLE),
    ]
    assert {one["kind"] for one in resources} == {
        "Namespace",
        "Deployment",
        "Service",
        "Ingress",
        "NetworkPolicy",
        "PodDisruptionBudget",
        "HorizontalPodAutoscaler",
        "Secret",
    }
    done = validated(resources, version)
    assert done.returncode == 0, done.stderr[-2000:]
    resources[1]["spec"]["template"]["spec"]["containers"][0]["livenesProbe"] = {}
    assert "livenesProbe" in validated(resources, version).stderr  # it does look


def test_every_file_is_applied_or_says_why_not() -> None:
    here = {file.name for file in HERE.iterdir()} - {"kustomization.yaml"}
    (made,) = kustomization()["configMapGenerator"]
    assert here == {*kustomization()["resources"], *made["envs"], ALTERNATIVE, EXAMPLE}


def test_kustomize_makes_what_is_applied() -> None:
    """Only where kubectl is: the one that Debian 12 has is older than what it reads."""
    if shutil.which("kubectl") is None:
        pytest.skip("no kubectl on the PATH")
    done = subprocess.run(
        ["kubectl", "kustomize", HERE], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    made = list(yaml.safe_load_all(done.stdout))
    (told,) = (one for one in made if one["kind"] == "ConfigMap")
    assert told["data"] == settings()
    (deployed,) = (one for one in made if one["kind"] == "Deployment")
    (one,) = deployed["spec"]["template"]["spec"]["containers"]
    assert one["envFrom"] == [{"configMapRef": {"name": told["metadata"]["name"]}}]
    assert re.fullmatch(r"authws:\d+\.\d+\.\d+", one["image"])
    kinds = {resource["kind"] for resource in made}
    assert kinds == {resource["kind"] for resource in applied()} | {"ConfigMap"}
    assert {one["metadata"].get("namespace", "authws") for one in made} == {"authws"}


def test_everything_selects_the_pods() -> None:
    deployment = of("Deployment")
    assert deployment["spec"]["selector"] == {"matchLabels": LABELS}
    assert deployment["spec"]["template"]["metadata"]["labels"] == LABELS
    assert of("Service")["spec"]["selector"] == LABELS
    assert of("PodDisruptionBudget")["spec"]["selector"] == {"matchLabels": LABELS}
    assert of("NetworkPolicy")["spec"]["podSelector"] == {"matchLabels": LABELS}
    for spread in pod()["topologySpreadConstraints"]:
        assert spread["labelSelector"] == {"matchLabels": LABELS}
    (by_connections,) = documents(HERE / ALTERNATIVE)
    for scaler in (of("HorizontalPodAutoscaler"), by_connections):
        target = scaler["spec"]["scaleTargetRef"]
        assert (target["kind"], target["name"]) == ("Deployment", "authws")


def test_the_ports_agree() -> None:
    image = (DEPLOY / "container" / "Containerfile").read_text()
    (port,) = container()["ports"]
    assert f"AUTHWS_PORT={port['containerPort']}" in image
    (published,) = of("Service")["spec"]["ports"]
    assert published["targetPort"] == port["name"]
    (rule,) = of("Ingress")["spec"]["rules"]
    (path,) = rule["http"]["paths"]
    assert path["backend"]["service"]["port"] == {"name": published["name"]}
    (let_in,) = of("NetworkPolicy")["spec"]["ingress"]
    assert let_in["ports"] == [{"port": port["containerPort"], "protocol": "TCP"}]


# ----------------------------------------------------------------------------- the pod


def test_a_pod_is_as_confined_as_the_restricted_standard_asks() -> None:
    labels = of("Namespace")["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
    context = pod()["securityContext"]
    assert context["runAsNonRoot"] is True
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container()["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    image = (DEPLOY / "container" / "Containerfile").read_text()
    for one in (context["runAsUser"], context["runAsGroup"], context["fsGroup"]):
        assert f"USER {one}:{one}\n" in image
    assert pod()["automountServiceAccountToken"] is False
    assert pod()["enableServiceLinks"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod().keys()


def test_probes_ask_what_exists_by_the_name_that_is_known(tmp_path: Path) -> None:
    app = create_app(Settings(_env_file=None, data_dir=tmp_path / "data"))
    routes = app.openapi()["paths"].keys()
    asked = {}
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        get = container()[probe]["httpGet"]
        asked[probe] = get["path"]
        assert get["path"] in routes
        assert get["port"] == "http"
        assert get["httpHeaders"] == [{"name": "Host", "value": host()}]
    assert asked == {
        "startupProbe": "/healthz",
        "livenessProbe": "/healthz",
        "readinessProbe": "/readyz",
    }


def test_a_drain_has_time_to_end() -> None:
    command = container()["lifecycle"]["preStop"]["exec"]["command"]
    assert command[0] == "sleep"
    needs = int(command[1]) + int(settings()["AUTHWS_DRAIN"])
    assert pod()["terminationGracePeriodSeconds"] >= needs + 5


def test_a_new_version_takes_nobodys_place_before_it_is_ready() -> None:
    spec = of("Deployment")["spec"]
    assert spec["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
    assert "replicas" not in spec
    for scaler in (
        of("HorizontalPodAutoscaler"),
        *documents(HERE / ALTERNATIVE),
    ):
        assert scaler["spec"]["minReplicas"] >= 2
    assert of("PodDisruptionBudget")["spec"]["maxUnavailable"] == 1


MIB = {"Mi": 1, "Gi": 1024}


def mebibytes(text: str) -> int:
    return int(text[:-2]) * MIB[text[-2:]]


def test_a_pod_may_have_what_was_measured() -> None:
    """docs/performance.md: what it has when nobody is there, and each connection."""
    measured = (DEPLOY.parent / "docs" / "performance.md").read_text()
    rows = re.findall(r"^\| [\w ]+ +\|\s*10,000 \|.*$", measured, re.M)
    per, empty = zip(
        *([float(cell) for cell in row.split("|")[4:6]] for row in rows), strict=True
    )
    limit = mebibytes(container()["resources"]["limits"]["memory"])
    request = mebibytes(container()["resources"]["requests"]["memory"])
    full = max(empty) + Settings(_env_file=None).max_connections * max(per) / 1000
    assert full * 2 <= limit * 1.048576  # and as much for those that read slowly
    assert request * 1.048576 >= max(empty) + 8000 * max(per) / 1000
    assert "cpu" not in container()["resources"]["limits"]  # throttled, all are late
    (by_connections,) = documents(HERE / ALTERNATIVE)
    wanted = by_connections["spec"]["metrics"][0]["pods"]["target"]["averageValue"]
    assert int(wanted) * 2 <= Settings(_env_file=None).max_connections


# ------------------------------------------------------------------- settings, secrets


def told(tmp_path: Path) -> Iterator[tuple[str, str]]:
    yield from settings().items()
    for one in container()["env"]:
        yield one["name"], one["value"].replace("/run/secrets/authws", str(tmp_path))


def test_the_service_would_start_with_what_it_is_told(tmp_path: Path) -> None:
    secrets = {
        "secret_keys": "kT3vQ9xZr7Lm2Np8Wc5Yb1Hd6Fg4Js0A-uE_oIiRtP",
        "database_url": "postgresql://authws:of-the-database@db.data/authws",
        "broker_url": "rediss://:of-the-broker@redis.data",
    }
    for name, secret in secrets.items():
        (tmp_path / name).write_text(secret)
        (tmp_path / name).chmod(mode())
    settings = configured(dict(told(tmp_path)))
    assert container()["args"] == ["serve", "--behind-proxy"]
    settings = settings.model_copy(update={"behind_proxy": True, "host": "10.244.1.7"})
    assert doctor.problems(settings) == []
    assert settings.hosts == {host()}


def mode() -> int:
    """With which the secrets are mounted; read by the pod's group."""
    (volume,) = (one for one in pod()["volumes"] if one["name"] == "secrets")
    number = volume["secret"]["defaultMode"]
    assert isinstance(number, int)
    return number


def test_every_secret_is_a_file_that_is_mounted() -> None:
    (mount,) = (one for one in container()["volumeMounts"] if one["name"] == "secrets")
    assert mount["readOnly"] is True
    named = {one["name"]: one["value"] for one in container()["env"]}
    assert named == {
        f"AUTHWS_{name.upper()}_FILE": f"{mount['mountPath']}/{name}" for name in FILED
    }
    assert not {f"AUTHWS_{name.upper()}" for name in FILED} & settings().keys()
    (example,) = documents(HERE / EXAMPLE)
    assert example["stringData"].keys() == set(FILED)


def test_the_example_of_a_secret_cannot_be_applied(tmp_path: Path) -> None:
    (example,) = documents(HERE / EXAMPLE)
    assert EXAMPLE not in kustomization()["resources"]
    assert not DNS_NAME.fullmatch(example["metadata"]["name"])
    for name, value in example["stringData"].items():
        path = tmp_path / name
        path.write_text(value)
        path.chmod(0o400)
        with pytest.raises(ConfigurationError, match="says nothing"):
            configured({f"AUTHWS_{name.upper()}_FILE": str(path)})


def test_what_is_written_to_has_room_and_is_kept_from_others() -> None:
    rooms = {one["name"]: one["emptyDir"] for one in pod()["volumes"][1:]}
    assert rooms.keys() == {"data", "tmp"}
    assert all("sizeLimit" in room for room in rooms.values())
    at = {one["name"]: one["mountPath"] for one in container()["volumeMounts"]}
    image = (DEPLOY / "container" / "Containerfile").read_text()
    # the directory in it, not it itself: whoever mounts a volume gives it its mode
    assert f"AUTHWS_DATA_DIR={at['data']}/data" in image
    assert at["tmp"] == "/tmp"  # noqa: S108 - the pod's own


# ------------------------------------------------------------------------- the network


def test_only_the_ingress_comes_in_and_little_goes_out() -> None:
    spec = of("NetworkPolicy")["spec"]
    assert spec["policyTypes"] == ["Ingress", "Egress"]
    (let_in,) = spec["ingress"]
    assert len(let_in["from"]) == 1
    assert all(rule["to"] for rule in spec["egress"])
    reached = {
        peer["podSelector"]["matchLabels"].popitem()[1]: {
            (port["port"], port["protocol"]) for port in rule["ports"]
        }
        for rule in spec["egress"]
        for peer in rule["to"]
    }
    assert reached == {
        "kube-dns": {(53, "UDP"), (53, "TCP")},
        "postgresql": {(5432, "TCP")},
        "redis": {(SCHEMES["rediss"][2], "TCP")},
    }
    said = (HERE / "network.yaml").read_text()
    for kind, _, port in SCHEMES.values():
        assert kind == "memory" or re.search(rf"{kind} .*{port}", said), kind


def test_who_is_believed_is_in_the_pods_network() -> None:
    (network,) = configured(settings()).trusted_proxies
    assert ip_network(network).is_private


def test_the_ingress_waits_for_a_silent_connection() -> None:
    defaults = Settings(_env_file=None)
    patience = defaults.ping_interval + defaults.ping_timeout
    annotations = of("Ingress")["metadata"]["annotations"]
    for which in ("read", "send"):
        ours = annotations[f"nginx.org/proxy-{which}-timeout"]
        theirs = annotations[f"nginx.ingress.kubernetes.io/proxy-{which}-timeout"]
        assert seconds(ours) == int(theirs) > patience
    assert (
        annotations["nginx.org/websocket-services"] == of("Service")["metadata"]["name"]
    )
    assert annotations["nginx.ingress.kubernetes.io/enable-access-log"] == "false"
    spec = of("Ingress")["spec"]
    assert [rule["host"] for rule in spec["rules"]] == [host()]
    assert [tls["hosts"] for tls in spec["tls"]] == [[host()]]
