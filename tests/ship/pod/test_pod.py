"""The shipped Deployment as a pod: registry, init container, emptyDir, and Triton beside it."""

from __future__ import annotations

import copy
import json
import sysconfig
from pathlib import Path

import pytest
import yaml

from prewarm.cli import main
from prewarm.ship.pack import pack

pytestmark = pytest.mark.network  # docker/init.Dockerfile installs prewarm's dependencies

KERNELS = Path(__file__).parent.parent / "kernels.py"
SERVE = Path(__file__).with_name("serve.py")
TRITON = Path(sysconfig.get_path("purelib"))


@pytest.fixture
def pushed(cache, registry, tmp_path, capsys):
    """The reference of the cache in the registry, by digest."""
    pack(cache.manifest, cache.directory, tmp_path / "image")
    reference = f"{registry}/caches:x"
    assert main(["push", str(tmp_path / "image"), reference, "--plain-http", "-q"]) == 0
    return capsys.readouterr().out.strip()


@pytest.fixture
def deployment(root, init_image, base_image, pushed):
    """The Deployment of docker/kubernetes/base, with what differs on a machine with no cluster.

    Images from here, a registry without TLS, and in place of vLLM the plugin and Triton on four
    kernels, both from this machine.
    """
    shipped = yaml.safe_load((root / "docker/kubernetes/base/deployment.yaml").read_text())
    changed = copy.deepcopy(shipped)
    pod = changed["spec"]["template"]["spec"]
    # Podman removes an init container that has ended, and its log, unless told otherwise.
    changed["metadata"]["annotations"] = {"io.podman.annotations.init.container.type": "always"}
    # Podman restarts init containers, too, and a container that has served.
    pod["restartPolicy"] = "Never"
    (init,) = pod["initContainers"]
    init["image"], init["imagePullPolicy"] = init_image, "Never"
    init["args"][1] = pushed
    init["args"].append("--plain-http")
    (serving,) = pod["containers"]
    serving["image"], serving["imagePullPolicy"] = base_image, "Never"
    serving["command"] = ["python", str(SERVE), str(KERNELS)]
    for name in ("args", "resources", "startupProbe", "readinessProbe", "ports"):
        del serving[name]
    serving["env"].append({"name": "PYTHONPATH", "value": f"{root}:{TRITON}"})
    for number, path in enumerate((root / "prewarm", KERNELS.parent, TRITON)):
        name = f"host-{number}"
        pod["volumes"].append({"name": name, "hostPath": {"path": str(path)}})
        serving["volumeMounts"].append({"name": name, "mountPath": str(path), "readOnly": True})
    return changed


@pytest.fixture
def play(engine, deployment, tmp_path):
    """The function that plays the Deployment and returns the init container's end and both logs."""
    file = tmp_path / "pod.yaml"

    def log(name):
        done = engine.run("podman", "logs", name)
        return done.stdout, done.stderr

    def played():
        file.write_text(yaml.safe_dump(deployment))
        engine.run("podman", "kube", "play", "--network", "host", file)
        names = engine.run("podman", "ps", "--all", "--format", "{{.Names}}").stdout.split()
        (init,) = (name for name in names if name.endswith("-prewarm"))
        (serving,) = (name for name in names if name.endswith("-pod-0-vllm"))
        assert engine.run("podman", "wait", serving).stdout == "0\n", log(serving)
        inspected = json.loads(engine.run("podman", "inspect", init).stdout)[0]
        return inspected, log(init), log(serving)

    yield played
    engine.run("podman", "kube", "down", file, code=None)
    engine.run("podman", "pod", "rm", "--all", "--force", code=None)
    engine.run("podman", "volume", "prune", "--force", code=None)


def hits(stdout):
    return [json.loads(line)["hit"] for line in stdout.splitlines()]


def test_the_pod_serves_from_the_registry_with_hits_only(play):
    inspected, (installed, said), (served, warned) = play()

    assert inspected["State"]["ExitCode"] == 0
    assert inspected["Config"]["User"] == "2000:2000"
    assert inspected["HostConfig"]["ReadonlyRootfs"] is True
    assert installed == "/prewarm/cache/triton\n"
    assert "installed: 4 launches" in said
    assert hits(served) == [True] * 4
    assert "holds no installed cache" not in warned


def test_a_tampered_image_installs_nothing_and_the_pod_starts_cold_and_says_so(play, tmp_path):
    blobs = (tmp_path / "registry").rglob("data")
    layer = max(blobs, key=lambda path: path.stat().st_size)
    layer.write_bytes(layer.read_bytes()[:-1] + b"x")

    inspected, (_, said), (served, warned) = play()

    assert inspected["State"]["ExitCode"] == 0
    assert said.startswith("prewarm: warning: starting cold, nothing installed: ")
    assert hits(served) == [False] * 4
    assert "prewarm: PREWARM_CACHE=/prewarm/cache holds no installed cache" in warned


def test_a_tampered_image_ends_the_pod_where_that_is_asked_for(engine, deployment, play, tmp_path):
    layer = max((tmp_path / "registry").rglob("data"), key=lambda path: path.stat().st_size)
    layer.write_bytes(layer.read_bytes()[:-1] + b"x")
    init = deployment["spec"]["template"]["spec"]["initContainers"][0]
    init["args"] += ["--on-unsound", "fail"]
    file = tmp_path / "pod.yaml"
    file.write_text(yaml.safe_dump(deployment))

    done = engine.run("podman", "kube", "play", "--network", "host", file, code=None)

    assert done.returncode != 0
    assert "exited with code 7" in done.stderr
