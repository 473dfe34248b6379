"""A container engine of the test's own, a base image from this machine's Python, a registry."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
from pathlib import Path
from typing import NamedTuple

import pytest

PREFIX = Path(sys.base_prefix)
STDLIB = Path(sysconfig.get_path("stdlib"))
UNUSED = ("site-packages", "test", "idlelib", "lib2to3", "ensurepip", "config-*", "__pycache__")


class Engine(NamedTuple):
    """Podman and buildah with storage of their own; nothing in /etc or /var is touched."""

    environment: dict[str, str]

    def run(self, *command: object, code: int | None = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [str(each) for each in command],
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert code is None or done.returncode == code, f"{done.stdout}{done.stderr}"
        return done


@pytest.fixture(scope="session")
def engine(tmp_path_factory):
    """An engine that can run containers here, settled for machines without systemd."""
    missing = [
        name for name in ("podman", "buildah", "runc", "catatonit") if shutil.which(name) is None
    ]
    if missing:
        pytest.skip(f"this machine has no {', '.join(missing)}")
    if os.geteuid() != 0:
        pytest.skip("containers without root need sub-uids that not every machine has")
    home = tmp_path_factory.mktemp("engine")
    (home / "registries.conf").write_text("unqualified-search-registries = []\n")
    (home / "storage.conf").write_text(
        f'[storage]\ndriver = "overlay"\ngraphroot = "{home}/root"\nrunroot = "{home}/run"\n'
    )
    (home / "containers.conf").write_text(
        '[engine]\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\nruntime = "runc"\n'
        'lock_type = "file"\n'
        f'tmp_dir = "{home}/tmp"\nvolume_path = "{home}/volumes"\n'
        '[containers]\nnetns = "host"\nlog_driver = "k8s-file"\n'
        'default_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]\n'
    )
    engine = Engine(
        {
            **os.environ,
            "HOME": str(home),
            "CONTAINERS_REGISTRIES_CONF": str(home / "registries.conf"),
            "CONTAINERS_STORAGE_CONF": str(home / "storage.conf"),
            "CONTAINERS_CONF": str(home / "containers.conf"),
        }
    )
    works = engine.run("podman", "info", code=None)
    if works.returncode != 0:
        pytest.skip(f"podman does not work here: {works.stderr.strip()}")
    yield engine
    engine.run("podman", "pod", "rm", "--all", "--force", code=None)
    engine.run("podman", "rmi", "--all", "--force", code=None)


@pytest.fixture(scope="session")
def base_image(engine, tmp_path_factory):
    """An image of this machine's Python and shell: nothing is fetched."""
    root = tmp_path_factory.mktemp("base")
    target = root / "rootfs"
    lib = target / STDLIB.relative_to("/")
    shutil.copytree(STDLIB, lib, ignore=shutil.ignore_patterns(*UNUSED), symlinks=True)
    shutil.copytree(STDLIB / "site-packages" / "pip", lib / "site-packages" / "pip")
    python = PREFIX / "bin" / f"python3.{sys.version_info.minor}"
    modules = (STDLIB / "lib-dynload").glob("*.so")
    triton = Path(sysconfig.get_path("purelib")) / "triton" / "_C" / "libtriton.so"
    shell = Path(shutil.which("sh") or "/bin/sh")
    for library in _libraries(python, shell, triton, *modules):
        _copy(library, target)
    _copy(python, target)
    _copy(shell, target, Path("/bin/sh"))
    (target / "usr/bin").mkdir(parents=True, exist_ok=True)
    for name in ("python", "python3"):
        (target / "usr/bin" / name).symlink_to(python)
    for name in ("etc", "tmp", "root"):
        (target / name).mkdir(exist_ok=True)
    # Ours alone may be closed to others, as /root is; the container's user is another one.
    for directory in (target, *(path for path in target.rglob("*") if path.is_dir())):
        directory.chmod(0o755)
    (target / "tmp").chmod(0o1777)
    file = root / "Dockerfile"
    file.write_text('FROM scratch\nCOPY rootfs /\nENV PATH="/usr/bin:/bin"\n')
    _build(engine, "prewarm-test-python", "-f", file, root)
    return "localhost/prewarm-test-python"


def _libraries(*programs: Path) -> set[Path]:
    found = set()
    for program in programs:
        listed = subprocess.run(["ldd", program], capture_output=True, text=True, check=False)
        found |= {Path(name) for name in re.findall(r"(/\S+) \(0x", listed.stdout)}
    return found


def _copy(source: Path, root: Path, to: Path | None = None) -> None:
    place = root / (to or source).relative_to("/")
    place.parent.mkdir(parents=True, exist_ok=True)
    if not place.exists():
        shutil.copy(source, place)


def _build(engine, name, *arguments):
    return engine.run("buildah", "bud", "--isolation", "chroot", "-t", name, *arguments)


@pytest.fixture(scope="session")
def init_image(engine, base_image, root):
    """The image of docker/init.Dockerfile, on that base."""
    configured = [
        option
        for path in ("/etc/pip.conf", "/etc/ssl/certs")
        if os.path.exists(path)
        for option in ("--volume", f"{path}:{path}:ro")
    ]
    index = [
        option
        for name in sorted(os.environ)
        if name.startswith("PIP_") and not name.startswith("PIP_FIND")
        for option in ("--env", f"{name}={os.environ[name]}")
    ]
    _build(
        engine,
        "prewarm-test-init",
        *configured,
        *index,
        "--build-arg",
        f"BASE={base_image}",
        "-f",
        root / "docker" / "init.Dockerfile",
        root,
    )
    return "localhost/prewarm-test-init"


@pytest.fixture
def registry(tmp_path):
    """The address of an empty docker-registry without TLS."""
    if shutil.which("docker-registry") is None:
        pytest.skip("this machine has no docker-registry")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = tmp_path / "registry.json"
    settings.write_text(
        json.dumps(
            {
                "version": "0.1",
                "log": {"level": "error"},
                "storage": {"filesystem": {"rootdirectory": str(tmp_path / "registry")}},
                "http": {"addr": f"127.0.0.1:{port}"},
            }
        )
    )
    with (tmp_path / "registry.log").open("wb") as log:
        server = subprocess.Popen(["docker-registry", "serve", settings], stdout=log, stderr=log)
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        assert server.poll() is None, (tmp_path / "registry.log").read_text()
        time.sleep(0.02)
    yield f"127.0.0.1:{port}"
    server.terminate()
    server.wait()
