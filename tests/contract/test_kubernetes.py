"""deploy/k8s makes manifests that a cluster takes, and that fit the code which runs in them.

No cluster is at hand: what `kubectl kustomize` renders is checked against the published schemas, as strictly as a
cluster's field validation (unknown fields are errors), and against the settings classes of the code.
"""

import json
import re
import shutil
import subprocess
from functools import cache
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator
from pydantic_settings import BaseSettings

from services.api.settings import ApiSettings
from services.delivery.settings import DeliverySettings
from services.delivery.transports import TRANSPORTS
from services.dropbox.settings import DropboxSettings
from services.exports.settings import ExportsSettings
from services.ingest.settings import IngestSettings
from services.platform.export_store import ExportStoreSettings
from services.platform.hosted import HostedAddressSettings, HostedFolderSettings
from services.platform.secret_settings import SecretSettings
from services.platform.settings import ENVIRONMENT_PREFIX, KafkaSettings
from services.windowing.settings import WindowingSettings
from tests.support.compose import REPOSITORY, image_environment

FOLDER = REPOSITORY / "deploy" / "k8s"
SCHEMA = json.loads((REPOSITORY / "tests" / "data" / "kubernetes-1.32.schema.json").read_bytes())
BUILDS = ("base", "overlays/small", "overlays/production")
SETTINGS: dict[str, tuple[type[BaseSettings], ...]] = {
    "services.api": (ApiSettings, SecretSettings, ExportStoreSettings, HostedAddressSettings),
    "services.ingest": (IngestSettings,),
    "services.windowing": (WindowingSettings,),
    "services.delivery": (DeliverySettings, SecretSettings, HostedFolderSettings),
    "services.dropbox": (DropboxSettings,),
    "services.exports": (ExportsSettings, ExportStoreSettings),
}
COMMON = "METERPOST_EXPORT_STORE_URL"
"""The one variable of the common map that not every process takes."""
Manifest = dict[str, Any]

pytestmark = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")


@cache
def build(name: str) -> tuple[Manifest, ...]:
    """Return what kustomize renders."""
    done = subprocess.run(["kubectl", "kustomize", str(FOLDER / name)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return tuple(yaml.safe_load_all(done.stdout))


def workloads(name: str) -> dict[str, Manifest]:
    """Return what runs for long, by name."""
    return {m["metadata"]["name"]: m for m in build(name) if m["kind"] in {"Deployment", "StatefulSet"}}


def pod(workload: Manifest) -> Manifest:
    """Return the pod's description."""
    found: Manifest = workload["spec"]["template"]["spec"]
    return found


def main_container(workload: Manifest) -> Manifest:
    """Return the container that the pod is for."""
    (container,) = pod(workload)["containers"]
    assert container["name"] == "meterpost"
    found: Manifest = container
    return found


def kafka_environment(workload: Manifest) -> dict[str, Any]:
    """Return how the container is told to log in to Kafka."""
    (container,) = pod(workload)["containers"]
    return {one["name"]: one for one in container["env"] if one["name"].startswith("METERPOST_KAFKA_")}


def module(workload: Manifest) -> str:
    """Return the module that the container runs."""
    command = main_container(workload)["command"]
    assert command[:2] == ["python", "-m"]
    return str(command[2])


def environment(name: str, workload: Manifest) -> dict[str, str]:
    """Return what the container gets, with something in the place of secrets."""
    common: dict[str, str]
    (common,) = (m["data"] for m in build(name) if m["kind"] == "ConfigMap")
    own = {
        one["name"]: one.get("value", "postgresql://u:p@postgres/meterpost")
        for one in main_container(workload).get("env", [])
    }
    image = {key: value for key, value in image_environment().items() if key.startswith(ENVIRONMENT_PREFIX)}
    return image | common | own


def strict_schema() -> dict[str, Any]:
    """Return the schemas with unknown fields forbidden, as a cluster's strict field validation has it."""

    def tighten(part: Any) -> Any:
        if isinstance(part, list):
            return [tighten(one) for one in part]
        if not isinstance(part, dict):
            return part
        made = {key: tighten(value) for key, value in part.items()}
        if isinstance(part.get("properties"), dict) and "additionalProperties" not in part:
            made["additionalProperties"] = False
        return made

    made: dict[str, Any] = tighten(SCHEMA)
    return made


def errors_of(manifest: Manifest) -> list[str]:
    """Return what a cluster would find wrong."""
    schema = strict_schema()
    group, _, version = manifest["apiVersion"].rpartition("/")
    prefix = {"networking.k8s.io": "networking"}.get(group, group or "core")
    reference = f"#/definitions/io.k8s.api.{prefix}.{version}.{manifest['kind']}"
    return [
        f"{'.'.join(str(step) for step in error.absolute_path)}: {error.message}"
        for error in Draft7Validator({"$ref": reference, "definitions": schema["definitions"]}).iter_errors(manifest)
    ]


@pytest.mark.parametrize("name", BUILDS)
def test_every_manifest_is_one_by_the_published_schemas(name: str) -> None:
    assert {f"{m['kind']}/{m['metadata']['name']}": errors for m in build(name) if (errors := errors_of(m))} == {}


def test_the_schemas_would_notice() -> None:
    ingest = json.loads(json.dumps(workloads("base")["meterpost-ingest"]))
    ingest["spec"]["replica"] = 2
    pod(ingest)["containers"][0]["ports"][0]["containerPort"] = "8080"
    found = "\n".join(errors_of(ingest))
    assert "'replica' was unexpected" in found
    assert "'8080' is not of type" in found


@pytest.mark.parametrize("name", BUILDS)
def test_every_process_runs_and_delivery_once_a_transport(name: str) -> None:
    assert {module(one) for one in workloads(name).values()} == set(SETTINGS)
    delivering = [one for one in workloads(name).values() if module(one) == "services.delivery"]
    assert sorted(main_container(one)["command"][3] for one in delivering) == sorted(TRANSPORTS)


@pytest.mark.parametrize("name", BUILDS)
def test_every_variable_is_a_setting_with_a_sound_value(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for label, one in workloads(name).items():
        classes = SETTINGS[module(one)]
        known = {field for settings in classes for field in settings.model_fields}
        given = environment(name, one)
        fields = {key: key.removeprefix(ENVIRONMENT_PREFIX).lower() for key in given}
        assert {key for key, field in fields.items() if field not in known and key != COMMON} == set(), label
        with monkeypatch.context() as patch:
            for key, value in given.items():
                patch.setenv(key, value)
            for settings in classes:
                settings()


@pytest.mark.parametrize("name", BUILDS)
def test_every_pod_is_without_rights_watched_and_ends_in_order(name: str) -> None:
    for label, one in workloads(name).items():
        spec, main = pod(one), main_container(one)
        assert spec["securityContext"]["runAsNonRoot"] is True, label
        assert spec["automountServiceAccountToken"] is False, label
        for container in [*spec.get("initContainers", []), main]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }, label
            assert {"requests", "limits"} == set(container["resources"]), label
            assert "cpu" not in container["resources"]["limits"], "a limit on CPU would throttle, not protect"
        assert main["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": "health"}, label
        assert main["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "health"}, label
        ports = {port["name"]: port["containerPort"] for port in main["ports"]}
        assert str(ports["health"]) == environment(name, one)["METERPOST_HEALTH_PORT"], label
        deadline = int(environment(name, one)["METERPOST_SHUTDOWN_DEADLINE_SECONDS"])
        assert spec["terminationGracePeriodSeconds"] >= deadline + 10, label


@pytest.mark.parametrize("name", BUILDS)
def test_what_is_mounted_exists_and_is_used(name: str) -> None:
    for label, one in workloads(name).items():
        spec = pod(one)
        claims = [claim["metadata"]["name"] for claim in one["spec"].get("volumeClaimTemplates", [])]
        volumes = {volume["name"] for volume in spec["volumes"]} | set(claims)
        mounts = {m["name"] for c in [*spec.get("initContainers", []), main_container(one)] for m in c["volumeMounts"]}
        assert mounts == volumes, label
        folders = [m["mountPath"] for m in main_container(one)["volumeMounts"]]
        for key, value in environment(name, one).items():
            path = value.removeprefix("file://")
            if key.endswith(("_FILE", "_FOLDER")) or (path != value and key != COMMON):
                assert any(path == folder or path.startswith(f"{folder}/") for folder in folders), f"{label}: {key}"


@pytest.mark.parametrize("name", BUILDS)
def test_what_selects_pods_selects_some(name: str) -> None:
    labels = {label: one["spec"]["template"]["metadata"]["labels"] for label, one in workloads(name).items()}
    for label, one in workloads(name).items():
        assert one["spec"]["selector"]["matchLabels"].items() <= labels[label].items()
    for manifest in build(name):
        spec = manifest.get("spec", {})
        chosen = {
            "Service": lambda spec=spec: spec["selector"],
            "PodDisruptionBudget": lambda spec=spec: spec["selector"]["matchLabels"],
            "NetworkPolicy": lambda spec=spec: spec["podSelector"]["matchLabels"],
        }.get(manifest["kind"])
        if chosen is not None:
            assert any(chosen().items() <= one.items() for one in labels.values()), manifest["metadata"]["name"]
        if manifest["kind"] == "HorizontalPodAutoscaler":
            target = workloads(name)[spec["scaleTargetRef"]["name"]]
            assert "replicas" not in target["spec"], "the scaler owns the number"


@pytest.mark.parametrize("name", BUILDS)
def test_services_and_the_hosted_folder_are_found_by_their_names_and_ports(name: str) -> None:
    services = {m["metadata"]["name"]: m for m in build(name) if m["kind"] == "Service"}
    delivery = environment(name, workloads(name)["meterpost-delivery-sftp"])
    dropbox = services[delivery["METERPOST_DROPBOX_HOST"]]
    (port,) = dropbox["spec"]["ports"]
    assert str(port["port"]) == delivery["METERPOST_DROPBOX_PORT"]
    for service, workload in (
        ("meterpost-api", "METERPOST_API_PORT"),
        ("meterpost-dropbox", "METERPOST_DROPBOX_LISTEN_PORT"),
    ):
        one = workloads(name)[service]
        ports = {p["name"]: p["containerPort"] for p in main_container(one)["ports"]}
        (port,) = services[service]["spec"]["ports"]
        assert str(ports[port["targetPort"]]) == environment(name, one)[workload]


@pytest.mark.parametrize("name", BUILDS)
def test_migration_comes_with_it_and_has_what_it_needs(name: str) -> None:
    (job,) = (m for m in build(name) if m["kind"] == "Job")
    (container,) = pod(job)["containers"]
    assert re.fullmatch(r"meterpost db migrate && meterpost topics declare( --replication 3)?", container["command"][2])
    of_kafka = {f"{ENVIRONMENT_PREFIX}{name}".upper() for name in KafkaSettings.model_fields}
    assert {one["name"] for one in container["env"]} - of_kafka == {"METERPOST_DATABASE_URL"}


@pytest.mark.parametrize("name", BUILDS)
def test_whoever_talks_to_kafka_talks_to_it_in_the_same_way_and_nobody_else_knows_the_password(name: str) -> None:
    (job,) = (m for m in build(name) if m["kind"] == "Job")
    told = {label: kafka_environment(one) for label, one in {**workloads(name), "migrate": job}.items()}
    for label, one in workloads(name).items():
        uses_kafka = any(getattr(settings, "uses_kafka", False) for settings in SETTINGS[module(one)])
        assert told[label] == (told["migrate"] if uses_kafka else {}), label
        mounted = {volume.get("secret", {}).get("secretName") for volume in pod(one)["volumes"]}
        assert ("meterpost-kafka" in mounted) == bool(told[label]), label
    assert bool(told["migrate"]) == (name == "overlays/production")


def test_no_secret_lies_in_the_files() -> None:
    for name in BUILDS:
        assert [m for m in build(name) if m["kind"] == "Secret"] == []


def test_the_images_of_overlays_are_pinned_to_the_product_s_version() -> None:
    version = re.search(r'^version = "(.+)"', (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    assert version is not None
    for name in ("overlays/small", "overlays/production"):
        for one in workloads(name).values():
            for container in [*pod(one).get("initContainers", []), main_container(one)]:
                assert container["image"].rpartition(":")[2] == version[1], container["image"]
