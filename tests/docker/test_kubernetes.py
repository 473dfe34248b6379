"""The shipped manifests: restricted, pinned, agreed with each other and with the command line."""

from __future__ import annotations

import json
import re
import subprocess
import venv
from pathlib import Path

import click
import pytest
import yaml

from prewarm.cli import cli
from prewarm.core.errors import InputError, IntegrityError, UnsupportedError
from prewarm.core.matrix_yaml import read_matrix
from prewarm.core.toolchain import Toolchain
from prewarm.ship.environment import environment, render_environment

HOME = Path(__file__).parent.parent.parent / "docker" / "kubernetes"
OVERLAYS = sorted(path.parent.name for path in HOME.glob("*/kustomization.yaml"))
WRITTEN = sorted(HOME.glob("*/*.yaml"))
RESTRICTED_VOLUMES = {
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "image",
    "persistentVolumeClaim",
    "projected",
    "secret",
}
OLDEST, NEWEST = "1.31", "1.37"
"""Kubernetes releases whose schemas the manifests must satisfy."""


def documents(path):
    return [each for each in yaml.safe_load_all(path.read_text()) if each]


def pods():
    """Return every pod that is written down, with the file that holds it."""
    found = [
        pytest.param(each["spec"]["template"]["spec"], id=f"{path.parent.name}-{each['kind']}")
        for path in WRITTEN
        for each in documents(path)
        if each.get("kind") in ("Deployment", "Job")
    ]
    assert len(found) == 3
    return found


def containers(pod):
    return [*pod.get("initContainers", ()), *pod["containers"]]


def breaches(pod):
    """Return in what `pod` is not what the restricted Pod Security Standard asks for."""
    found = []
    if any(pod.get(name) for name in ("hostNetwork", "hostPID", "hostIPC")):
        found.append("a host namespace")
    found += [
        f"volume {volume['name']}"
        for volume in pod.get("volumes", ())
        if not set(volume) - {"name"} <= RESTRICTED_VOLUMES
    ]
    for container in containers(pod):
        own = {**pod.get("securityContext", {}), **container.get("securityContext", {})}
        ports = container.get("ports", ())
        found += [f"{container['name']}: {breach}" for breach in _breaches(own, ports)]
    return found


def _breaches(context, ports):
    capabilities = context.get("capabilities", {})
    if context.get("privileged") or context.get("allowPrivilegeEscalation") is not False:
        yield "privileges"
    if context.get("runAsNonRoot") is not True or context.get("runAsUser") == 0:
        yield "root"
    if context.get("seccompProfile", {}).get("type") not in ("RuntimeDefault", "Localhost"):
        yield "seccomp"
    if "ALL" not in capabilities.get("drop", ()) or capabilities.get("add"):
        yield "capabilities"
    if any("hostPort" in port for port in ports):
        yield "a host port"


@pytest.mark.parametrize("pod", pods())
def test_every_pod_is_restricted(pod):
    assert breaches(pod) == []


@pytest.mark.parametrize(
    ("change", "breach"),
    [
        (lambda pod: pod.update(hostNetwork=True), "a host namespace"),
        (lambda pod: pod["securityContext"].pop("runAsNonRoot"), "prewarm: root"),
        (lambda pod: pod["securityContext"].pop("seccompProfile"), "prewarm: seccomp"),
        (lambda pod: pod["initContainers"][0].pop("securityContext"), "prewarm: capabilities"),
        (lambda pod: pod["volumes"].append({"name": "x", "hostPath": {}}), "volume x"),
    ],
)
def test_what_is_not_restricted_is_noticed(change, breach):
    (deployment,) = documents(HOME / "base" / "deployment.yaml")
    pod = deployment["spec"]["template"]["spec"]
    change(pod)

    assert breach in breaches(pod)


@pytest.mark.parametrize("pod", pods())
def test_what_holds_prewarm_alone_cannot_write_its_root(pod):
    for container in containers(pod):
        if container["image"] == "prewarm-init":
            assert container["securityContext"]["readOnlyRootFilesystem"] is True
            assert {"name": "tmp", "mountPath": "/tmp"} in container["volumeMounts"]


@pytest.mark.parametrize("pod", pods())
def test_no_pod_sees_the_token_of_its_account(pod):
    assert pod["automountServiceAccountToken"] is False


@pytest.mark.parametrize("pod", pods())
def test_every_mount_has_its_volume(pod):
    mounted = {mount["name"] for each in containers(pod) for mount in each["volumeMounts"]}

    assert mounted == {volume["name"] for volume in pod["volumes"]}


def commands():
    """Return what the manifests say to prewarm, as arguments."""
    found = []
    for path in WRITTEN:
        for document in documents(path):
            if document.get("kind") not in ("Deployment", "Job"):
                continue
            for each in containers(document["spec"]["template"]["spec"]):
                name = f"{path.parent.name}-{each['name']}"
                if each.get("command") in (None, ["prewarm"]):
                    found.append(pytest.param(each["args"], id=name))
    return found


@pytest.mark.parametrize("arguments", commands())
def test_every_command_is_one_that_prewarm_understands(arguments):
    with cli.make_context("prewarm", list(arguments), obj=None) as context:
        verb = cli.get_command(context, arguments[0])
        made = verb.make_context(arguments[0], list(arguments[1:]), obj=None, parent=context)

    assert isinstance(made, click.Context)


def test_the_server_has_the_environment_that_install_prints(root):
    (deployment,) = documents(HOME / "base" / "deployment.yaml")
    pod = deployment["spec"]["template"]["spec"]
    (init,), (serving,) = pod["initContainers"], pod["containers"]
    into = init["args"][init["args"].index("--into") + 1]
    printed = yaml.safe_load(
        render_environment(environment(f"{into}/triton", any_toolchain(root)), "kubernetes")
    )

    assert serving["env"][: len(printed)] == printed
    assert {"name": "PREWARM_CACHE", "value": into} in serving["env"]
    for container in (init, serving):
        assert {"name": "prewarm", "mountPath": str(Path(into).parent)} in container["volumeMounts"]


def any_toolchain(root) -> Toolchain:
    from prewarm.core.digest import digest_of
    from prewarm.core.toolchain import Ptxas

    return Toolchain(
        vllm="0.25.1",
        torch="2.11.0",
        cuda="13.0",
        triton="3.6.0",
        triton_key=digest_of(b"key"),
        ptxas=Ptxas(version="12.9.86", text=digest_of(b"ptxas"), chosen_by="triton"),
        python_abi="cpython-312",
        machine="x86_64",
        libc="glibc 2.36",
    )


def fleet_job():
    (job,) = documents(HOME / "fleet" / "job.yaml")
    pod = job["spec"]["template"]["spec"]
    (shard,), (gather,) = pod["initContainers"], pod["containers"]
    return job["spec"], shard, gather


def after(option, container):
    return container["args"][container["args"].index(option) + 1]


def test_the_fleet_has_one_number_of_shards():
    job, shard, gather = fleet_job()

    assert job["completionMode"] == "Indexed"
    assert after("--shard", shard) == after("--shard", gather) == f"job/{job['completions']}"


def test_the_last_shard_gathers_what_all_have_built():
    _, shard, gather = fleet_job()

    assert shard["args"][0] == "build"
    assert gather["args"][0] == "gather"
    assert after("-o", shard) == after("-o", gather)
    (volume,) = (
        each for each in gather["volumeMounts"] if each["mountPath"] == after("-o", gather)
    )
    assert volume in shard["volumeMounts"]


def test_a_run_of_the_fleet_is_one_job():
    _, _, gather = fleet_job()
    (run,) = (each for each in gather["env"] if each["name"] == "RUN")

    assert after("--run", gather) == "$(RUN)"
    # The label that the Job controller gives every pod of one Job, and no other Job has.
    field = "metadata.labels['batch.kubernetes.io/controller-uid']"
    assert run["valueFrom"] == {"fieldRef": {"fieldPath": field}}


def test_what_compiles_sees_no_credentials():
    _, shard, gather = fleet_job()
    mounted = [[mount["name"] for mount in each["volumeMounts"]] for each in (shard, gather)]

    assert ["credentials" in each for each in mounted] == [False, True]


def test_a_shard_that_would_fail_again_fails_its_index_alone():
    job, _, _ = fleet_job()
    ignored, failed = job["podFailurePolicy"]["rules"]

    assert ignored["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    assert failed["action"] == "FailIndex"
    classes = (InputError, UnsupportedError, IntegrityError)
    assert failed["onExitCodes"]["values"] == [each.exit_code for each in classes]


def test_the_matrix_is_one_that_a_fleet_build_reads():
    assert len(read_matrix(HOME / "fleet" / "matrix.yaml")) == 18


@pytest.mark.parametrize("name", OVERLAYS)
def test_every_image_that_is_rendered_is_pinned_by_digest(name, rendered):
    found = re.findall(r'"(?:image|reference)": "([^"]*)"', json.dumps(rendered(name)))

    assert found
    assert all(re.search(r"@sha256:[0-9a-f]{64}$", each) for each in found)


def test_with_an_image_volume_the_init_container_installs_from_it(rendered):
    (deployment,) = rendered("image-volume")
    pod = deployment["spec"]["template"]["spec"]
    (init,) = pod["initContainers"]

    assert init["args"][:2] == ["install", "/image"]
    assert {"name": "image", "mountPath": "/image", "readOnly": True} in init["volumeMounts"]
    assert [each["name"] for each in pod["volumes"] if "image" in each] == ["image"]
    assert breaches(pod) == []


def test_credentials_are_seen_by_the_init_container_alone(rendered):
    (deployment,) = rendered("private-registry")
    pod = deployment["spec"]["template"]["spec"]

    assert [
        each["name"]
        for each in containers(pod)
        for mount in each["volumeMounts"]
        if mount["name"] == "credentials"
    ] == ["prewarm"]


def test_kueue_admits_the_fleet(rendered):
    (job,) = (each for each in rendered("fleet-kueue") if each["kind"] == "Job")

    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "prewarm"
    assert job["spec"]["suspend"] is True


@pytest.fixture(scope="session")
def validator(tmp_path_factory):
    """The command that holds a file against the schemas of a Kubernetes release."""
    home = tmp_path_factory.mktemp("schemas") / "env"
    venv.create(home, with_pip=True)
    install = [home / "bin" / "python", "-m", "pip", "install", "-qq", "--no-cache-dir"]
    done = subprocess.run(
        [*install, "kubernetes-validate==1.37.0"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return home / "bin" / "kubernetes-validate"


@pytest.mark.network
@pytest.mark.parametrize("release", [OLDEST, NEWEST])
def test_the_schemas_of_kubernetes_know_every_field(release, rendered, validator, tmp_path):
    objects = {
        f"{name}-{number}": each for name in OVERLAYS for number, each in enumerate(rendered(name))
    }
    for name, each in objects.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(each))

    def validate():
        paths = sorted(tmp_path.glob("*.yaml"))
        command = [validator, "--strict", "--quiet", "--kubernetes-version", release, *paths]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    done = validate()
    assert done.returncode == 0, done.stdout + done.stderr
    wrong = objects["fleet-1"]
    wrong["spec"]["backoffLimitPerIndx"] = 1
    (tmp_path / "a-wrong.yaml").write_text(yaml.safe_dump(wrong))
    assert validate().returncode != 0
