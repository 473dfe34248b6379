"""append against buildah: the same root file system, the same variables, and hits in both."""

from __future__ import annotations

import json
import os
import stat
import sysconfig
from pathlib import Path

import pytest

from prewarm.cli import main
from prewarm.ship.pack import pack

KERNELS = Path(__file__).parent.parent / "kernels.py"
DOCKER = Path(__file__).parents[3] / "docker"
TRITON = Path(sysconfig.get_path("purelib"))
INHERITED = ("User", "Env", "Entrypoint", "Cmd", "WorkingDir")


@pytest.fixture(params=["oci", "v2s2"])
def base(request, engine, base_image, registry):
    """A reference of the base in the registry, as an image of either family."""
    name = f"{registry}/base/{request.param}:1"
    made = engine.run("buildah", "from", base_image).stdout.strip()
    settings = ("--user", "2000:0", "--workingdir", "/tmp", "--entrypoint", '["python"]')
    engine.run("buildah", "config", *settings, "--label", "maker=somebody", made)
    engine.run("buildah", "commit", "-q", "--rm", "--format", "oci", made, name)
    push = ("buildah", "push", "-q", "--tls-verify=false", "--format", request.param)
    engine.run(*push, name, f"docker://{name}")
    engine.run("buildah", "rmi", name)
    return name


@pytest.fixture
def pushed(cache, registry, tmp_path, capsys):
    """The reference of the cache in the registry, packed for the path of docker/copy.Dockerfile."""
    pack(cache.manifest, cache.directory, tmp_path / "image", "/opt/prewarm")
    assert main(["push", str(tmp_path / "image"), f"{registry}/caches:x", "-q"]) == 0
    return capsys.readouterr().out.strip()


@pytest.fixture
def both(engine, base, pushed, registry, capsys):
    """The image that append makes, and the one that buildah builds from the Dockerfile."""
    arguments = {"VLLM_IMAGE": base, "CACHE": pushed}
    options = [f"--build-arg={name}={value}" for name, value in arguments.items()]
    build = ("buildah", "bud", "-q", "--isolation", "chroot", "--tls-verify=false", *options)
    engine.run(*build, "-t", "localhost/built", "-f", DOCKER / "copy.Dockerfile", DOCKER)
    assert main(["append", base, pushed, "--to", f"{registry}/serve:1", "-q"]) == 0
    appended = capsys.readouterr().out.strip()
    engine.run("podman", "pull", "-q", "--tls-verify=false", appended)
    return appended, "localhost/built"


def files(root):
    """Return what is at every path below `root`: its kind, mode, owner and content."""
    found = {}
    for path in sorted(root.rglob("*")):
        said = path.lstat()
        content = None
        if path.is_symlink():
            content = os.readlink(path)
        elif path.is_file():
            content = path.read_bytes()
        kind = stat.S_IFMT(said.st_mode)
        mode = None if kind == stat.S_IFLNK else stat.S_IMODE(said.st_mode)
        found[str(path.relative_to(root))] = kind, mode, said.st_uid, said.st_gid, content
    return found


def test_append_is_the_dockerfile_in_effect_and_serves_with_hits_only(engine, both):
    snapshots, configs = [], []
    for image in both:
        mounted = Path(engine.run("podman", "image", "mount", image).stdout.strip())
        snapshots.append(files(mounted))
        engine.run("podman", "image", "unmount", image)
        (inspected,) = json.loads(engine.run("podman", "image", "inspect", image).stdout)
        configs.append(inspected["Config"])

    appended, built = snapshots
    assert len([path for path in appended if path.startswith("opt/prewarm/")]) > 20
    assert appended.keys() == built.keys()
    assert {path for path in appended if appended[path] != built[path]} == set()
    ours, theirs = ({name: each.get(name) for name in INHERITED} for each in configs)
    assert ours == theirs
    assert ours["User"] == "2000:0"
    assert "TRITON_CACHE_DIR=/opt/prewarm/io.triton.cache" in ours["Env"]
    assert configs[0]["Labels"]["maker"] == "somebody"
    assert [served(engine, image) for image in both] == [[True] * 4] * 2


def served(engine, image):
    """Return what Triton found in a container of `image`, asked where its own variables lead."""
    command = 'python "$0" "$TRITON_CACHE_DIR"'
    volumes = [f"--volume={each}:{each}:ro" for each in (TRITON, KERNELS.parent)]
    run = ("podman", "run", "--rm", "--read-only", "--env", f"PYTHONPATH={TRITON}", *volumes)
    done = engine.run(*run, "--entrypoint", "sh", image, "-c", command, KERNELS)
    return [json.loads(line)["hit"] for line in done.stdout.splitlines()]
