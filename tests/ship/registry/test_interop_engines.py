"""What is pushed, as the engines and tools of others read it: each compares every file."""

import json
import os
import shutil
import subprocess
import time
import venv
from pathlib import Path
from typing import NamedTuple

import pytest

from prewarm.ship.push import push
from prewarm.ship.reference import parse_reference
from prewarm.ship.source import open_source

ORAS = "oras==0.2.43"


def needs(*programs):
    missing = [name for name in programs if shutil.which(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"this machine has no {', '.join(missing)}")


as_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="containers without root need sub-uids that not every machine has"
)


def run(*command, **environment):
    done = subprocess.run(
        [str(each) for each in command],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


class InRegistry(NamedTuple):
    """The packed image, pushed: its repository with the tags v1 and, of the index, all."""

    name: str
    digest: str
    files: dict[str, bytes]


@pytest.fixture
def pushed(packed, plain_registry, repository_name):
    name = plain_registry.name(repository_name)
    done = push(packed[0], parse_reference(f"{name}:v1"), index="all")
    return InRegistry(name, done.digest, open_source(packed[0]).files)


def files_below(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def storage(tmp_path):
    """Environment of containers/storage in a directory of the test's own."""
    (tmp_path / "registries.conf").write_text("unqualified-search-registries = []\n")
    (tmp_path / "policy.json").write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
    (tmp_path / "storage.conf").write_text(
        f'[storage]\ndriver = "vfs"\ngraphroot = "{tmp_path}/graph"\nrunroot = "{tmp_path}/run"\n'
    )
    (tmp_path / "containers.conf").write_text(
        '[engine]\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\nlock_type = "file"\n'
        f'tmp_dir = "{tmp_path}/engine"\nvolume_path = "{tmp_path}/volumes"\n'
    )
    return {
        "CONTAINERS_REGISTRIES_CONF": str(tmp_path / "registries.conf"),
        "CONTAINERS_STORAGE_CONF": str(tmp_path / "storage.conf"),
        "CONTAINERS_CONF": str(tmp_path / "containers.conf"),
    }


@as_root
@needs("podman")
@pytest.mark.parametrize("tag", ["v1", "all"])
def test_podman_pulls_and_mounts_an_image_and_an_index(tag, pushed, storage):
    pull = ["podman", "pull", "--quiet", "--tls-verify=false", f"{pushed.name}:{tag}"]
    image = run(*pull, **storage).strip()
    mounted = run("podman", "image", "mount", image, **storage).strip()

    assert files_below(Path(mounted)) == pushed.files
    (told,) = json.loads(run("podman", "image", "inspect", image, **storage))
    assert told["Labels"]["dev.prewarm.target"] == "b200"
    assert f"{pushed.name}@{pushed.digest}" in told["RepoDigests"]
    run("podman", "image", "unmount", image, **storage)


@as_root
@needs("buildah")
def test_buildah_pulls_an_image_and_copies_from_it(pushed, storage, tmp_path):
    (tmp_path / "Dockerfile").write_text(
        f"FROM {pushed.name}@{pushed.digest} AS cache\n"
        "FROM scratch\nCOPY --from=cache / /opt/prewarm/\n"
    )
    bud = ["buildah", "bud", "--quiet", "--isolation", "chroot", "--tls-verify=false"]
    image = run(*bud, "-f", tmp_path / "Dockerfile", tmp_path, **storage).strip()
    container = run("buildah", "from", image, **storage).strip()
    mounted = Path(run("buildah", "mount", container, **storage).strip())

    assert files_below(mounted / "opt" / "prewarm") == pushed.files
    run("buildah", "rm", container, **storage)


@needs("umoci", "skopeo")
def test_umoci_unpacks_what_skopeo_brings(pushed, tmp_path):
    copy = ["skopeo", "copy", "--insecure-policy", "--src-tls-verify=false"]
    run(*copy, f"docker://{pushed.name}:v1", f"oci:{tmp_path}/copy:v1")
    run("umoci", "unpack", "--rootless", "--image", f"{tmp_path}/copy:v1", tmp_path / "bundle")

    assert files_below(tmp_path / "bundle" / "rootfs") == pushed.files


@needs("skopeo")
def test_skopeo_copies_an_index_with_everything_in_it_and_its_digest(pushed, tmp_path):
    copy = ["skopeo", "copy", "--all", "--insecure-policy", "--src-tls-verify=false"]
    run(*copy, f"docker://{pushed.name}:all", f"dir:{tmp_path}/copy")
    raw = run("skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{pushed.name}:all")

    assert (tmp_path / "copy" / "manifest.json").read_text() == raw
    (named,) = json.loads(raw)["manifests"]
    assert named["digest"] == pushed.digest


# containerd


class Containerd(NamedTuple):
    """A daemon of the test's own."""

    socket: Path

    def ctr(self, *arguments):
        return run("ctr", "--address", self.socket, "--namespace", "test", *arguments)


@pytest.fixture
def containerd(tmp_path):
    """A containerd with its state below the test's directory, the CRI plugin left out."""
    settings = tmp_path / "containerd.toml"
    settings.write_text(
        f'version = 2\nroot = "{tmp_path}/c-root"\nstate = "{tmp_path}/c-state"\n'
        'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n'
        f'[grpc]\naddress = "{tmp_path}/c.sock"\n[ttrpc]\naddress = "{tmp_path}/t.sock"\n'
    )
    with (tmp_path / "containerd.log").open("w") as log:
        daemon = subprocess.Popen(["containerd", "--config", settings], stdout=log, stderr=log)
    until = time.monotonic() + 60
    while "successfully booted" not in (tmp_path / "containerd.log").read_text():
        if daemon.poll() is not None or time.monotonic() > until:
            daemon.kill()
            pytest.skip(f"containerd does not run here: {(tmp_path / 'containerd.log')}")
        time.sleep(0.05)
    yield Containerd(tmp_path / "c.sock")
    daemon.terminate()
    daemon.wait()


@as_root
@needs("ctr", "containerd")
@pytest.mark.parametrize("what", ["{0.name}:v1", "{0.name}@{0.digest}", "{0.name}:all"])
def test_containerd_pulls_unpacks_and_mounts(what, pushed, containerd, tmp_path):
    name = what.format(pushed)
    containerd.ctr("images", "pull", "--plain-http", "--snapshotter", "native", name)
    (tmp_path / "mounted").mkdir()
    mount = ["images", "mount", "--snapshotter", "native", name, tmp_path / "mounted"]
    containerd.ctr(*mount)

    found = files_below(tmp_path / "mounted")
    run("umount", tmp_path / "mounted")
    assert found == pushed.files
    assert "is complete" not in containerd.ctr("images", "check", "--quiet")
    assert pushed.digest in containerd.ctr("content", "ls", "--quiet")


@as_root
@needs("ctr", "containerd")
def test_containerd_fetches_every_blob_of_an_index(pushed, containerd):
    containerd.ctr("content", "fetch", "--plain-http", "--all-platforms", f"{pushed.name}:all")

    manifest = json.loads(containerd.ctr("content", "get", pushed.digest))
    there = set(containerd.ctr("content", "ls", "--quiet").split())
    assert {pushed.digest, manifest["config"]["digest"]} <= there
    assert {layer["digest"] for layer in manifest["layers"]} <= there


# oras


@pytest.fixture(scope="session")
def oras(tmp_path_factory):
    """The Python of an environment that holds oras."""
    home = tmp_path_factory.mktemp("oras") / "env"
    venv.create(home, with_pip=True)
    install = [home / "bin" / "python", "-m", "pip", "install", "-qq", "--no-cache-dir", ORAS]
    done = subprocess.run(install, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return home / "bin" / "python"


PULL = """
import sys
from oras.client import OrasClient
host, target, out = sys.argv[1:]
OrasClient(hostname=host, insecure=True).pull(target=target, outdir=out)
"""


@pytest.mark.network
@pytest.mark.parametrize("form", ["{0.name}:v1", "{0.name}@{0.digest}"])
def test_oras_pulls_and_unpacks_every_file(form, pushed, oras, tmp_path):
    host = pushed.name.partition("/")[0]
    command = [oras, "-c", PULL, host, form.format(pushed), tmp_path / "out"]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    assert files_below(tmp_path / "out") == pushed.files
