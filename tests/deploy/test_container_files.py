"""Compose files and Kubernetes manifests are valid, and refer only to files, settings and routes that exist."""

import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import typer
import yaml
from starlette.datastructures import Headers

from sd35.api.app import create_app
from sd35.api.browsers import AllowedHosts
from sd35.api.server import _ANSWERING_S
from sd35.cli.main import app
from sd35.service.lifecycle import ServiceLifecycle
from sd35.service.metrics_collector import metric_descriptions
from sd35.settings import Settings, load_settings

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
COMPOSE = [ROOT / "compose.yaml", ROOT / "compose.gpu.yaml"]
MANIFESTS = sorted((ROOT / "deploy/kubernetes").glob("*.yaml"))
PAGES = [ROOT / "README.md", ROOT / "docs/guide/containers.md"]
NAME = re.compile(r"\bSD35_[A-Z0-9_]+")
KNOWN = {f"SD35_{name.upper()}" for name in Settings.model_fields}
GRACE_S = Settings.model_fields["shutdown_grace_s"].default


def read(path: Path) -> Any:
    """Read a YAML file with one document."""
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def manifest(name: str) -> Any:
    """Read a Kubernetes manifest."""
    return read(ROOT / f"deploy/kubernetes/{name}.yaml")


@pytest.fixture(scope="module")
def container() -> Any:
    """The only container of the Deployment."""
    (found,) = manifest("deployment")["spec"]["template"]["spec"]["containers"]
    return found


def test_compose_files_follow_the_specification():
    """They are checked with the schema that check-jsonschema bundles."""
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    result = subprocess.run([*command, *map(str, COMPOSE)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
@pytest.mark.parametrize("version", ["1.30", "1.37"])
def test_manifests_follow_kubernetes_schemas(path: Path, version: str):
    """A field that Kubernetes does not know is an error."""
    kubernetes_validate.validate(read(path), version, strict=True)


def test_folders_and_volumes_that_compose_mounts_exist():
    """Paths exist in the repository. Named volumes are declared."""
    composed = read(COMPOSE[0])
    for service in composed["services"].values():
        for volume in service.get("volumes", []):
            source = volume.partition(":")[0]
            assert (ROOT / source).exists() if source.startswith(".") else source in composed["volumes"]


def test_each_image_is_a_target_of_the_dockerfile():
    """`sd35:cuda` is what `make image TARGET=cuda` builds."""
    text = "".join(path.read_text(encoding="utf-8") for path in (*COMPOSE, *MANIFESTS, *PAGES))
    named = set(re.findall(r"\bsd35:(\w+)\b(?![:@])", text)) - {"8000"}
    assert named == {"cpu", "cuda", "tensorrt"}
    assert named <= set(re.findall(r"^FROM .* AS (\w+)$", DOCKERFILE, re.MULTILINE))


def test_variables_are_settings():
    """A misspelt variable SD35_... would be ignored."""
    paths = [*COMPOSE, *MANIFESTS, ROOT / "Dockerfile", *PAGES]
    named = {name for path in paths for name in NAME.findall(path.read_text(encoding="utf-8"))}
    assert {"SD35_DATABASE", "SD35_BACKEND", "SD35_PRECISION"} <= named
    assert named - KNOWN == set()


def test_probes_use_routes_and_ports_of_the_service(container: Any):
    """This covers the three probes of Kubernetes, and HEALTHCHECK in the Dockerfile."""
    paths = create_app(ServiceLifecycle(pytest.fail, pytest.fail, lambda _: None), load_settings()).openapi()["paths"]
    (port,) = container["ports"]
    probes = [container[f"{kind}Probe"]["httpGet"] for kind in ("startup", "readiness", "liveness")]
    assert {probe["port"] for probe in probes} == {port["name"]}
    assert port["containerPort"] == Settings.model_fields["port"].default
    (healthcheck,) = re.findall(r"c\.request\('GET', '(/\w+)'\)", DOCKERFILE)
    assert {healthcheck, *(probe["path"] for probe in probes)} <= paths.keys()


def test_manifests_refer_to_each_other(container: Any):
    """Service, volume and autoscaler belong to the pods of the Deployment."""
    deployment, service = manifest("deployment"), manifest("service")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert labels == deployment["spec"]["selector"]["matchLabels"] == service["spec"]["selector"]
    assert service["spec"]["ports"][0]["targetPort"] == container["ports"][0]["name"]
    volumes = deployment["spec"]["template"]["spec"]["volumes"]
    claims = [volume["persistentVolumeClaim"]["claimName"] for volume in volumes if "persistentVolumeClaim" in volume]
    assert claims == [manifest("pvc")["metadata"]["name"]]
    assert manifest("hpa")["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]


def test_running_images_have_time_to_end(container: Any):
    """The service is not killed before images have ended and their responses are sent."""
    needed_s = GRACE_S + _ANSWERING_S
    pre_stop_s = float(container["lifecycle"]["preStop"]["exec"]["command"][1])
    pod = manifest("deployment")["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] >= pre_stop_s + needed_s
    assert float(read(COMPOSE[0])["services"]["sd35"]["stop_grace_period"].removesuffix("s")) >= needed_s
    text = "".join(path.read_text(encoding="utf-8") for path in PAGES)
    stopped = re.findall(r"(?:docker stop -t|--stop-timeout) (\d+)", text)
    assert stopped
    assert all(float(given_s) >= needed_s for given_s in stopped)


def _metrics_of_hpa() -> Iterator[str]:
    for metric in manifest("hpa")["spec"]["metrics"]:
        yield metric[metric["type"].lower()]["metric"]["name"]


def test_the_autoscaler_uses_metrics_that_the_adapter_provides():
    """Each metric is a rule of prometheus-adapter for a series of /metrics."""
    rules = read(ROOT / "deploy/kubernetes/prometheus-adapter/values.yaml")["rules"]
    provided = {}
    for rule in (*rules["custom"], *rules["external"]):
        series = rule["seriesQuery"].partition("{")[0]
        provided[rule.get("name", {}).get("as", series)] = series
    assert set(_metrics_of_hpa()) == provided.keys()
    assert set(provided.values()) <= {each.name for each in metric_descriptions()}


def test_prometheus_in_compose_scrapes_the_service_as_the_job_of_the_alerts():
    """The target has the name and the port of the service."""
    (job,) = read(ROOT / "deploy/prometheus/compose.yaml")["scrape_configs"]
    assert (job["job_name"], job["static_configs"]) == ("sd35", [{"targets": ["sd35:8000"]}])
    if promtool := shutil.which("promtool"):
        subprocess.run([promtool, "check", "config", str(ROOT / "deploy/prometheus/compose.yaml")], check=True)


@pytest.mark.parametrize("more", ["", "gpu.example, *.lan"])
def test_compose_allows_the_name_that_prometheus_uses(more: str):
    """It is the first of `allowed_hosts`, also if the operator's environment adds more names."""
    variable = read(COMPOSE[0])["services"]["sd35"]["environment"]["SD35_ALLOWED_HOSTS"]
    names = load_settings({"allowed_hosts": variable.replace("${SD35_ALLOWED_HOSTS:-}", more)}).allowed_hosts
    (job,) = read(ROOT / "deploy/prometheus/compose.yaml")["scrape_configs"]
    (target,) = job["static_configs"][0]["targets"]
    assert AllowedHosts(names).error(Headers({"host": target})) is None
    assert (AllowedHosts(names).error(Headers({"host": "gpu.example:8000"})) is None) == bool(more)


def test_kubernetes_allows_the_names_of_the_service(container: Any):
    """Short and full names are allowed. Kubernetes expands a variable only in variables that follow it."""
    names = [each["name"] for each in container["env"]]
    assert names.index("POD_NAMESPACE") < names.index("SD35_ALLOWED_HOSTS")
    (value,) = (each["value"] for each in container["env"] if each["name"] == "SD35_ALLOWED_HOSTS")
    allowed = AllowedHosts(load_settings({"allowed_hosts": value.replace("$(POD_NAMESPACE)", "art")}).allowed_hosts)
    service = manifest("service")["metadata"]["name"]
    for suffix in ("", ".art", ".art.svc", ".art.svc.cluster.local"):
        assert allowed.error(Headers({"host": f"{service}{suffix}"})) is None
    assert allowed.error(Headers({"host": f"{service}.other.svc"}))


def test_the_locks_hold_the_same_pytorch():
    """The lock of the PyTorch layer has the version of the extra. No other lock of an image has PyTorch."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (pin,) = (each for each in project["optional-dependencies"]["diffusers"] if each.startswith("torch=="))
    locks = {name: (ROOT / f"requirements/{name}.txt").read_text(encoding="utf-8") for name in _locks()}
    assert f"{pin} " in locks.pop("torch")
    assert not [name for name, lock in locks.items() if re.search(r"^(torch|nvidia-\S+)==", lock, re.MULTILINE)]


def _locks() -> set[str]:
    return set(re.findall(r"requirements/(\w+)\.txt", DOCKERFILE))


def test_documented_docker_runs_are_complete_commands():
    """Each names an image, and publishes the port or gives a command of `sd35`."""
    text = "".join(path.read_text(encoding="utf-8") for path in PAGES)
    runs = [line.replace("\\\n", " ") for line in re.findall(r"^\$ (docker run (?:.*\\\n)*.*)$", text, re.MULTILINE)]
    assert len(runs) >= 4
    commands = typer.main.get_group(app).commands.keys()
    for line in runs:
        words = shlex.split(line, comments=True)
        (image,) = (index for index, word in enumerate(words) if word.startswith("sd35:"))
        assert words[image + 1 :] or {"8000:8000", "127.0.0.1:8000:8000"} & set(words), line
        assert set(words[image + 1 : image + 2]) <= commands, line
