"""What is shipped to run the service elsewhere is valid, and names what there is."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from starlette.testclient import TestClient

from sd35.settings import Settings
from tests.api.conftest import serving
from tests.double import double_studio

ROOT = Path(__file__).parents[2]
MANIFESTS = list(yaml.safe_load_all((ROOT / "deploy/kubernetes/sd35.yaml").read_text()))
KUBERNETES = "1.31"
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text())
DOCKERFILE = (ROOT / "Dockerfile").read_text()


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    """A client of the service."""
    with double_studio(tmp_path) as studio, serving(studio) as client:
        yield client


def only(kind: str) -> dict[str, Any]:
    """The manifest of a kind."""
    (found,) = [each for each in MANIFESTS if each["kind"] == kind]
    return dict(found)


def container() -> dict[str, Any]:
    """The one of the Deployment."""
    (found,) = only("Deployment")["spec"]["template"]["spec"]["containers"]
    return dict(found)


@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda manifest: manifest["kind"])
def test_a_manifest_is_as_kubernetes_describes_it(manifest: dict[str, Any]):
    """By the schema of its kind, in which nothing else may stand."""
    kubernetes_validate.validate(manifest, KUBERNETES, strict=True)


def test_probes_and_the_scaling_ask_what_there_is(client: TestClient):
    """The paths answer, and the series behind the scaled metric is in /metrics."""
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert client.get(container()[probe]["httpGet"]["path"]).status_code == 200
    adapter = yaml.safe_load((ROOT / "deploy/kubernetes/adapter-values.yaml").read_text())
    (rule,) = adapter["rules"]["custom"]
    (metric,) = only("HorizontalPodAutoscaler")["spec"]["metrics"]
    assert metric["pods"]["metric"]["name"] == rule["name"]["as"]
    assert f"\n{rule['seriesQuery'].partition('{')[0]}{{" in client.get("/metrics").text


def test_every_variable_is_a_setting():
    """In the image, in compose.yaml, and on Kubernetes: none is set that nobody reads."""
    named = {variable["name"] for variable in container()["env"]} | set(COMPOSE["services"]["sd35"]["environment"])
    named |= set(re.findall(r"\b(SD35_[A-Z_]+)=", DOCKERFILE))
    settings = {f"SD35_{name.upper()}" for name in Settings.model_fields}
    assert {name for name in named if name.startswith("SD35_")} <= settings
    assert "SD35_DATABASE" in named


def test_there_is_time_to_finish_a_picture():
    """The grace time ends before the container is killed, wherever it runs."""
    grace_s = Settings.model_fields["grace_s"].default
    assert int(COMPOSE["services"]["sd35"]["stop_grace_period"].removesuffix("s")) > grace_s
    spec = only("Deployment")["spec"]["template"]["spec"]
    slept_s = int(container()["lifecycle"]["preStop"]["exec"]["command"][1])
    assert spec["terminationGracePeriodSeconds"] > grace_s + slept_s
    assert "STOPSIGNAL SIGTERM" in DOCKERFILE


def test_what_compose_mounts_is_there():
    """Files and folders of this project, and nothing is offered beyond this machine."""
    for service in COMPOSE["services"].values():
        mounted = [volume.partition(":")[0] for volume in service["volumes"]]
        for path in mounted:
            assert (ROOT / path).exists() if path.startswith("./") else path in COMPOSE["volumes"]
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    assert COMPOSE["services"]["sd35"]["build"]["target"] == "${SD35_TARGET:-cuda}"
    assert re.findall(r"^FROM \S+ AS (cpu|tensorrt|cuda)$", DOCKERFILE, re.MULTILINE) == ["cpu", "tensorrt", "cuda"]


def test_prometheus_takes_its_configuration():
    """As promtool says, with the shipped rules."""
    if not shutil.which("promtool"):
        pytest.skip("promtool is not installed")
    command = ["promtool", "check", "config", "deploy/prometheus/compose.yaml"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_dockerfile_is_clean():
    """By hadolint, and its scripts by the shell's own reading."""
    done = subprocess.run(
        [Path(sys.executable).with_name("hadolint"), "Dockerfile"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    for script in (ROOT / "deploy/image").glob("*.sh"):
        shell = shutil.which("bash")
        assert shell
        assert subprocess.run([shell, "-n", script], check=False).returncode == 0


def test_the_bill_names_what_is_installed(tmp_path: Path):
    """Python's packages and Debian's, each with version, licence and package URL, the same each time."""
    if not shutil.which("dpkg-query"):
        pytest.skip("this is no Debian")

    for name in ("first", "second"):
        subprocess.run([sys.executable, ROOT / "deploy/image/bill.py", tmp_path / name], check=True)
    bill = json.loads((tmp_path / "first" / "sbom.json").read_text())
    assert (tmp_path / "first" / "sbom.json").read_bytes() == (tmp_path / "second" / "sbom.json").read_bytes()
    found = {each["purl"].partition("@")[0]: each for each in bill["components"]}
    assert found["pkg:pypi/fastapi"]["licenses"] == [{"license": {"name": "MIT"}}]
    assert any(purl.startswith("pkg:deb/debian/") for purl in found)
    assert "numpy " in (tmp_path / "first" / "licences.txt").read_text()
