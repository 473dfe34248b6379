"""append against real registries: what is made, what is fetched for it, and what is refused."""

import gzip
import io
import json
import os
import random
import re
import shutil
import subprocess
import tarfile

import msgspec
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from prewarm.cli import main
from prewarm.core.digest import digest_of
from prewarm.core.errors import InputError, IntegrityError, TryAgainError
from prewarm.ship.append import append
from prewarm.ship.blobs import has_blob, read_blob, upload
from prewarm.ship.image import CONFIG_TYPE, INDEX_TYPE, MANIFEST_TYPE
from prewarm.ship.layer import DOCKER_GZIP, GZIP
from prewarm.ship.layout import read_index
from prewarm.ship.manifests import (
    DOCKER_CONFIG_TYPE,
    DOCKER_MANIFEST_TYPE,
    get_manifest,
    put_manifest,
    tags,
)
from prewarm.ship.pack import pack
from prewarm.ship.push import push
from prewarm.ship.reference import parse_reference
from prewarm.ship.transport import Connection, NotThereError

OCI = (MANIFEST_TYPE, CONFIG_TYPE, GZIP)
DOCKER = (DOCKER_MANIFEST_TYPE, DOCKER_CONFIG_TYPE, DOCKER_GZIP)
EXECUTION = {
    "User": "2000:0",
    "Env": ["PATH=/usr/bin:/bin", "LANG=C.UTF-8"],
    "Entrypoint": ["vllm", "serve"],
    "Cmd": ["--help"],
    "WorkingDir": "/workspace",
    "Labels": {"maker": "somebody", "org.opencontainers.image.base.name": "docker.io/cuda:12"},
    "Healthcheck": {"Test": ["CMD", "true"], "Interval": 30_000_000_000},
}


def tar_of_one(name, data):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


class Parts:
    """An image of another maker: its documents and its layers, as bytes."""

    def __init__(self, family=OCI, architecture="amd64", seed=1, **execution):
        kind, config_type, layer_type = family
        numbers = random.Random(seed)
        tars = [tar_of_one(f"usr/{n}", numbers.randbytes(400_000)) for n in range(2)]
        self.layers = [gzip.compress(tar, 1, mtime=0) for tar in tars]
        config = {
            "architecture": architecture,
            "os": "linux",
            "created": "2026-01-02T03:04:05.678901234Z",
            "config": {**EXECUTION, **execution},
            "rootfs": {"type": "layers", "diff_ids": [digest_of(tar) for tar in tars]},
            "history": [
                {"created_by": "/bin/sh -c #(nop) ADD"},
                {"created_by": "ENV LANG=C.UTF-8", "empty_layer": True},
                {"created_by": "RUN pip install vllm"},
            ],
            "docker_version": "27.0",
        }
        self.config = json.dumps(config).encode()
        manifest = {
            "schemaVersion": 2,
            "mediaType": kind,
            "config": self._descriptor(config_type, self.config),
            "layers": [self._descriptor(layer_type, layer) for layer in self.layers],
        }
        if family == OCI:
            manifest["annotations"] = {"org.opencontainers.image.version": "0.25.1"}
        self.kind = kind
        self.manifest = json.dumps(manifest, indent=3).encode()
        self.digest = digest_of(self.manifest)

    @staticmethod
    def _descriptor(kind, data):
        return {"mediaType": kind, "digest": digest_of(data), "size": len(data)}

    @property
    def descriptor(self):
        plain = self._descriptor(self.kind, self.manifest)
        architecture = json.loads(self.config)["architecture"]
        return {**plain, "platform": {"os": "linux", "architecture": architecture}}

    def push(self, repository, describe, tag=None):
        for data in (self.config, *self.layers):
            upload(repository, describe(data), lambda content=data: io.BytesIO(content))
        put_manifest(repository, self.manifest, self.kind, tag)

    def write(self, layout):
        blobs = layout / "blobs" / "sha256"
        blobs.mkdir(parents=True)
        for data in (self.manifest, self.config, *self.layers):
            (blobs / digest_of(data).partition(":")[2]).write_bytes(data)
        index = {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": [self.descriptor]}
        (layout / "index.json").write_text(json.dumps(index))
        (layout / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')


@pytest.fixture(params=[OCI, DOCKER], ids=["oci", "docker"])
def parts(request):
    return Parts(request.param)


@pytest.fixture
def base(plain_registry, repository_name, opened, describe):
    """The function that pushes an image as v1: the name of its repository."""
    name = plain_registry.name(f"{repository_name}/base")

    def make(image, tag="v1"):
        image.push(opened(name), describe, tag)
        return name

    return make


@pytest.fixture
def target(plain_registry, repository_name):
    return plain_registry.name(f"{repository_name}/target")


@pytest.fixture
def through(proxy):
    """The function from a name in the registry to that behind the proxy."""
    return lambda name: f"{proxy.host}/{name.partition('/')[2]}"


@pytest.fixture
def other_registry(start_registry):
    return start_registry()


def run(capsys, *argv):
    """Return exit code, stdout and stderr of prewarm with `argv`."""
    capsys.readouterr()
    code = main([str(each) for each in argv])
    return code, *capsys.readouterr()


def made_at(repository, wanted):
    """Return the manifest, the config and the cache's files of the image `wanted`."""
    stored = get_manifest(repository, wanted)
    manifest = stored.manifest()
    config = json.loads(read_blob(repository, manifest.config, 1 << 20))
    layer = read_blob(repository, manifest.layers[-1], 1 << 24)
    return stored, manifest, config, layer


def members(layer):
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(layer))) as tar:
        return {
            info.name: (info.mode, info.uid, info.gid, tar.extractfile(info).read())
            if info.isfile()
            else (info.mode, info.uid, info.gid, None)
            for info in tar
        }


def append_(base, source, to, **how):
    how.setdefault("connection", Connection(backoff=0.01, timeout=5))
    connection = how.pop("connection")
    return append(parse_reference(base), source, parse_reference(to), connection, **how)


def test_the_base_is_kept_and_the_cache_and_its_variables_are_added(
    parts, base, packed, target, opened, capsys
):
    image, was_packed = packed
    name = base(parts)

    code, out, err = run(capsys, "append", f"{name}:v1", image, "--to", f"{target}:v1")

    assert code == 0, err
    stored, manifest, config, layer = made_at(opened(target), "v1")
    assert out == f"{target}@{stored.digest}\n"
    old_manifest, old = json.loads(parts.manifest), json.loads(parts.config)
    assert stored.media_type == parts.kind
    assert manifest.config.media_type == old_manifest["config"]["mediaType"]
    plain = json.loads(stored.data)
    assert plain["layers"][:2] == old_manifest["layers"]
    assert manifest.layers[2].media_type == old_manifest["layers"][0]["mediaType"]
    assert config["rootfs"]["diff_ids"][:2] == old["rootfs"]["diff_ids"]
    assert config["rootfs"]["diff_ids"][2:] == [digest_of(gzip.decompress(layer))]
    assert config["history"][:3] == old["history"]
    assert config["history"][3]["created_by"].startswith("prewarm append sha256:")
    for field in ("User", "Entrypoint", "Cmd", "WorkingDir", "Healthcheck"):
        assert config["config"][field] == EXECUTION[field]
    assert config["config"]["Env"] == [
        *EXECUTION["Env"],
        "TRITON_CACHE_DIR=/opt/prewarm/io.triton.cache",
        "TRITON_CACHE_AUTOTUNING=1",
    ]
    labels = config["config"]["Labels"]
    assert was_packed.identity in run(capsys, "show", f"{target}:v1")[1]
    assert labels["maker"] == "somebody"
    assert labels["dev.prewarm.identity"] == was_packed.identity
    assert labels["dev.prewarm.mount-path"] == "/opt/prewarm"
    assert not [each for each in labels if not re.match(r"maker|dev\.prewarm\.|org\.", each)]
    assert (config["docker_version"], config["created"]) == ("27.0", old["created"])
    origin = {
        "org.opencontainers.image.base.name": f"{name}:v1",
        "org.opencontainers.image.base.digest": parts.digest,
    }
    assert labels.items() >= origin.items()
    if parts.kind == MANIFEST_TYPE:
        assert plain["annotations"] == {"org.opencontainers.image.version": "0.25.1"} | origin
    else:
        assert "annotations" not in plain


def test_the_layer_holds_the_cache_below_the_mount_path(base, packed, target, opened):
    done = append_(f"{base(Parts())}:v1", packed[0], f"{target}:v1", mount_path="/srv/a/kernels")

    found = members(made_at(opened(target), done.digest)[3])
    above = {name: found.pop(name) for name in ("srv", "srv/a", "srv/a/kernels")}
    assert set(above.values()) == {(0o755, 0, 0, None)}
    assert all(name.startswith("srv/a/kernels/") for name in found)
    for mode, user, group, data in found.values():
        assert (mode, user, group) == (0o775 if data is None else 0o664, 0, 0)
    groups = [json.loads(found[name][3]) for name in found if "__grp__" in name]
    paths = [path.lstrip("/") for group in groups for path in group["child_paths"].values()]
    assert len(paths) == 8
    assert set(paths) <= found.keys()


def test_no_layer_of_the_base_is_fetched(parts, base, packed, target, proxy, through):
    name = base(parts)

    done = append_(f"{through(name)}:v1", packed[0], f"{through(target)}:v1")

    assert (done.base_layers, done.copied) == ({"mounted": 2}, 0)
    fetched = [each.path for each in proxy.seen if each.method == "GET" and "/blobs/" in each.path]
    config = json.loads(parts.manifest)["config"]["digest"]
    assert [path.rpartition("/")[2] for path in fetched] == [config]


def test_in_the_repository_of_the_base_not_even_the_layers_are_asked_for(
    base, packed, proxy, through
):
    image = Parts()
    name = through(base(image))

    done = append_(f"{name}:v1", packed[0], f"{name}:with-cache")

    assert done.base_layers == {"there": 2}
    assert not any(proxy.count(digest_of(layer)) for layer in image.layers)


def test_where_a_mount_is_not_granted_layers_are_passed_on(
    base, packed, target, proxy, through, faults, opened, describe
):
    image = Parts()
    name = base(image)
    proxy.fault("POST .*mount=", faults.status(403), times=2)

    done = append_(f"{through(name)}:v1", packed[0], f"{through(target)}:v1")

    assert done.base_layers == {"copied": 2}
    assert done.copied == sum(map(len, image.layers))
    for layer in image.layers:
        assert read_blob(opened(target), describe(layer), 1 << 20) == layer


def test_from_another_registry_only_what_lacks_is_passed_on_and_through_no_file(
    base, packed, other_registry, opened, describe, start_proxy, monkeypatch, tmp_path
):
    image, proxy = Parts(), start_proxy(other_registry.host)
    name, there = base(image), f"{proxy.host}/a/vllm"
    first = describe(image.layers[0])
    upload(opened(there), first, lambda: io.BytesIO(image.layers[0]))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "nowhere"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))

    done = append_(f"{name}:v1", packed[0], f"{there}:v1")

    assert done.base_layers == {"there": 1, "copied": 1}
    assert done.copied == len(image.layers[1])
    second = describe(image.layers[1])
    assert read_blob(opened(there), second, 1 << 20) == image.layers[1]
    uploads = [each for each in proxy.seen if digest_of(image.layers[1]) in each.path]
    (put,) = (each for each in uploads if each.method == "PUT")
    assert put.headers["Content-Length"] == str(len(image.layers[1]))
    again = append_(f"{name}:v1", packed[0], f"{there}:v1")
    assert (again.digest, again.base_layers) == (done.digest, {"there": 2})


def test_a_layer_that_is_cut_on_its_way_goes_on_in_the_same_upload(
    base, packed, other_registry, proxy, through, faults, start_proxy, opened, describe
):
    image, behind = Parts(), start_proxy(other_registry.host)
    name = base(image)
    digest = digest_of(image.layers[1])
    proxy.fault(f"GET .*{digest}", faults.cut_after(100_000))
    proxy.fault(f"GET .*{digest}", faults.status(503))

    append_(f"{through(name)}:v1", packed[0], f"{behind.host}/a/vllm:v1")

    ranges = [each.headers.get("Range") for each in proxy.seen if digest in each.path]
    assert ranges == [None, "bytes=100000-", "bytes=100000-"]
    assert behind.count(f"PUT .*{digest.partition(':')[2]}") == 1
    found = opened(f"{behind.host}/a/vllm")
    assert read_blob(found, describe(image.layers[1]), 1 << 20) == image.layers[1]


def test_wrong_bytes_of_a_base_are_refused_and_nothing_is_tagged(
    base, packed, other_registry, proxy, through, faults, opened, describe
):
    image = Parts()
    name = base(image)
    layer = describe(image.layers[0])
    proxy.fault(f"GET .*{layer.digest}", faults.changed(lambda body: body[:-1] + b"?"), times=9)
    there = f"{other_registry.host}/a/vllm"

    with pytest.raises(IntegrityError):
        append_(f"{through(name)}:v1", packed[0], f"{there}:v1")

    assert tags_of(opened(there)) == ()
    assert not has_blob(opened(there), layer)


def tags_of(repository):
    try:
        return tags(repository)
    except NotThereError:
        return ()


def test_a_registry_of_the_base_that_fails_leaves_nothing_tagged(
    base, packed, other_registry, proxy, through, faults, opened
):
    name = base(Parts())
    proxy.fault("GET .*/blobs/", faults.status(503), times=99)
    there = f"{other_registry.host}/a/vllm"
    impatient = Connection(attempts=2, backoff=0.01)

    with pytest.raises(TryAgainError):
        append_(f"{through(name)}:v1", packed[0], f"{there}:v1", connection=impatient)

    assert tags_of(opened(there)) == ()


def test_the_same_image_comes_out_whatever_form_the_cache_has(
    base, cache, packed, target, tmp_path, monkeypatch
):
    name = f"{base(Parts())}:v1"
    pack(cache.manifest, cache.directory, tmp_path / "mounted", "/opt/prewarm")
    tree = tmp_path / "tree"
    tree.mkdir()
    blobs = (tmp_path / "mounted" / "blobs" / "sha256").iterdir()
    with tarfile.open(max(blobs, key=lambda path: path.stat().st_size)) as tar:
        tar.extractall(tree)
    sources = [packed[0], tmp_path / "mounted", tree]

    digests = {append_(name, each, f"{target}:v1").digest for each in sources}

    assert len(digests) == 1
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    assert append_(name, packed[0], f"{target}:v1").digest not in digests


def test_the_cache_goes_where_it_was_packed_for(base, cache, target, tmp_path, opened):
    pack(cache.manifest, cache.directory, tmp_path / "image", "/srv/kernels")

    done = append_(f"{base(Parts())}:v1", tmp_path / "image", f"{target}:v1")

    assert done.mount_path == "/srv/kernels"
    assert "srv/kernels/prewarm/manifest.json" in members(made_at(opened(target), "v1")[3])


def test_the_time_of_the_image_is_the_one_that_is_asked_for(
    base, packed, target, opened, monkeypatch
):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1800000000")

    append_(f"{base(Parts())}:v1", packed[0], f"{target}:v1")

    config = made_at(opened(target), "v1")[2]
    assert config["created"] == config["history"][-1]["created"] == "2027-01-15T08:00:00Z"


# Which base


@pytest.fixture
def index(plain_registry, repository_name, opened, describe):
    """The function that pushes images and an index of them: its name."""
    name = plain_registry.name(f"{repository_name}/index")

    def make(*images):
        for each in images:
            each.push(opened(name), describe)
        unknown = {"os": "unknown", "architecture": "unknown"}
        entries = [each.descriptor for each in images]
        entries.append({**images[0].descriptor, "platform": unknown})
        plain = {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": entries}
        put_manifest(opened(name), json.dumps(plain).encode(), INDEX_TYPE, "v1")
        return f"{name}:v1"

    return make


def test_of_an_index_the_image_that_the_cache_is_for_is_taken(index, packed, target):
    intel, arm = Parts(), Parts(architecture="arm64", seed=2)

    done = append_(index(arm, intel), packed[0], f"{target}:v1")

    assert (done.base_digest, done.platform) == (intel.digest, "linux/amd64")


def test_an_index_without_the_platform_says_what_it_has(index, packed, target, capsys):
    name = index(Parts(architecture="arm64"), Parts(architecture="s390x"))

    code, _, err = run(capsys, "append", name, packed[0], "--to", target)
    assert code == 2
    assert "no image for linux/amd64; it has linux/arm64, linux/s390x" in err


def test_a_base_for_another_cpu_is_8_and_nothing_is_pushed(
    base, index, packed, target, opened, capsys
):
    arm = Parts(architecture="arm64")
    name = f"{base(arm)}:v1"

    code, out, err = run(capsys, "append", name, packed[0], "-t", target)
    assert (code, out) == (8, "")
    assert "is for linux/arm64, and the cache was built for linux/amd64" in err
    both = index(arm, Parts())
    argv = ("append", both, packed[0], "-t", target, "--platform", "linux/arm64")
    assert run(capsys, *argv)[0] == 8
    assert tags_of(opened(target)) == ()


def test_a_platform_that_the_one_image_is_not_for_is_bad_input(base, packed, target, capsys):
    name = f"{base(Parts())}:v1"
    argv = ("append", name, packed[0], "-t", target, "--platform", "linux/arm64")

    code, _, err = run(capsys, *argv)
    assert (code, "is one image, for linux/amd64" in err) == (2, True)


@pytest.mark.parametrize("platform", ["amd64", "linux/", "linux/arm64/v8/x"])
def test_what_is_no_platform_is_bad_input(base, packed, target, capsys, platform):
    argv = ("append", base(Parts()), packed[0], "-t", target, "--platform", platform)

    code, _, err = run(capsys, *argv)
    assert (code, "OS/ARCHITECTURE" in err) == (2, True)


def test_what_is_no_container_image_is_no_base(packed, target, plain_registry, opened, describe):
    name = f"{target}-artifact"
    config = Parts._descriptor("application/x", b"{}")
    upload(opened(name), describe(b"{}"), lambda: io.BytesIO(b"{}"))
    plain = {"schemaVersion": 2, "mediaType": MANIFEST_TYPE, "config": config, "layers": []}
    put_manifest(opened(name), json.dumps(plain).encode(), MANIFEST_TYPE, "v1")

    with pytest.raises(InputError, match=r"no container image but 'application/x'"):
        append_(f"{name}:v1", packed[0], f"{target}:v1")


def test_a_base_that_has_a_cache_gets_no_second_one(base, packed, target):
    append_(f"{base(Parts())}:v1", packed[0], f"{target}:v1")

    with pytest.raises(InputError, match="has the cache sha256:"):
        append_(f"{target}:v1", packed[0], f"{target}:v2")


def test_a_base_with_no_config_no_history_and_no_variables_will_do(
    base, packed, target, opened, describe
):
    bare = Parts()
    config = json.loads(bare.config)
    del config["history"], config["created"]
    config["config"] = None
    bare.config = json.dumps(config).encode()
    manifest = json.loads(bare.manifest)
    del manifest["mediaType"]
    manifest["config"] = Parts._descriptor(CONFIG_TYPE, bare.config)
    bare.manifest = json.dumps(manifest).encode()

    append_(f"{base(bare)}:v1", packed[0], f"{target}:v1")

    stored, _, config, _ = made_at(opened(target), "v1")
    assert json.loads(stored.data)["mediaType"] == MANIFEST_TYPE
    assert "history" not in config
    assert len(config["config"]["Env"]) == 2


# Variables


def test_a_variable_that_the_base_sets_otherwise_must_be_given_up_explicitly(
    base, packed, target, opened, capsys
):
    env = ["TRITON_CACHE_DIR=/data/triton", "PATH=/bin", "TRITON_F32_DEFAULT=ieee"]
    name = f"{base(Parts(Env=env))}:v1"
    argv = ("append", name, packed[0], "--to", f"{target}:v1")

    code, out, err = run(capsys, *argv)
    assert (code, out) == (2, "")
    assert "TRITON_CACHE_DIR is '/data/triton', and would be '/opt/prewarm/io.triton.cac" in err
    assert "--override-env" in err
    assert tags_of(opened(target)) == ()

    code, _, err = run(capsys, *argv, "--override-env")
    assert code == 0
    assert "warning: TRITON_CACHE_DIR was '/data/triton' in the base" in err
    assert "warning: the base sets TRITON_F32_DEFAULT=ieee, with which the cache was not" in err
    assert made_at(opened(target), "v1")[2]["config"]["Env"] == [
        "TRITON_CACHE_DIR=/opt/prewarm/io.triton.cache",
        "PATH=/bin",
        "TRITON_F32_DEFAULT=ieee",
        "TRITON_CACHE_AUTOTUNING=1",
    ]


def test_a_variable_that_the_base_sets_to_the_same_is_no_conflict(base, packed, target, opened):
    done = append_(
        f"{base(Parts(Env=['TRITON_CACHE_AUTOTUNING=1']))}:v1", packed[0], f"{target}:v1"
    )

    assert (done.replaced, done.foreign) == ((), {})
    assert len(made_at(opened(target), "v1")[2]["config"]["Env"]) == 2


# Where to


def test_a_base_without_a_host_is_docker_hubs():
    from prewarm.appending import base_named

    found = base_named("vllm/vllm-openai:v0.25.1")
    assert str(found) == "docker.io/vllm/vllm-openai:v0.25.1"


@pytest.mark.parametrize("place", ["/root/x", "/tmp", "/lib/kernels", "/var/run/x", "/", "opt/x"])
def test_a_mount_path_that_would_change_the_base_is_refused(base, packed, target, capsys, place):
    argv = ("append", base(Parts()), packed[0], "-t", target, "--mount-path", place)

    assert run(capsys, *argv)[0] == 2


def test_a_target_needs_a_host_and_has_no_digest(base, packed, target, capsys, tmp_path):
    name = f"{base(Parts())}:v1"

    code, _, err = run(capsys, "append", name, packed[0], "--to", "me/my-vllm:v1")
    assert (code, "--to docker.io/me/my-vllm:v1" in err) == (2, True)
    pinned = f"{target}@{digest_of(b'x')}"
    assert run(capsys, "append", name, packed[0], "--to", pinned)[0] == 2


def test_without_a_tag_it_is_latest(base, packed, target, opened, capsys):
    assert run(capsys, "append", f"{base(Parts())}:v1", packed[0], "--to", target)[0] == 0
    assert tags(opened(target)) == ("latest",)


def test_json_tells_what_was_done(base, packed, target, capsys):
    argv = ("append", f"{base(Parts())}:v1", packed[0], "--to", target, "--json")

    code, out, err = run(capsys, *argv)
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["reference"] == f"{target}@{found['digest']}"
    assert found["environment"][0]["name"] == "TRITON_CACHE_DIR"
    assert found["base_layers"] == {"mounted": 2}


def test_a_layout_is_a_base_for_a_registry(packed, target, parts, opened, describe, tmp_path):
    parts.write(tmp_path / "base")

    done = append(tmp_path / "base", packed[0], parse_reference(f"{target}:v1"))

    assert done.base_layers == {"copied": 2}
    stored, _, config, _ = made_at(opened(target), "v1")
    assert "org.opencontainers.image.base.name" not in config["config"]["Labels"]
    assert stored.media_type == parts.kind
    assert has_blob(opened(target), describe(parts.layers[1]))


def test_of_a_layout_with_several_images_the_one_that_the_cache_is_for_is_taken(
    packed, target, tmp_path, capsys
):
    images = [Parts(architecture="arm64", seed=2), Parts(seed=3)]
    write_layouts(tmp_path / "base", images)

    done = append(tmp_path / "base", packed[0], parse_reference(target))
    assert done.base_digest == images[1].digest

    write_layouts(tmp_path / "twice", [*images, Parts(seed=4)])
    code, _, err = run(capsys, "append", tmp_path / "twice", packed[0], "--to", target)
    assert (code, "holds 3 images" in err) == (2, True)


def test_an_index_in_a_layout_is_looked_into(packed, target, tmp_path):
    images = [Parts(architecture="arm64", seed=2), Parts(seed=3)]
    layout = tmp_path / "base"
    write_layouts(layout, images)
    data = (layout / "index.json").read_bytes()
    (layout / "blobs" / "sha256" / digest_of(data)[7:]).write_bytes(data)
    outer = {"schemaVersion": 2, "manifests": [Parts._descriptor(INDEX_TYPE, data)]}
    (layout / "index.json").write_text(json.dumps(outer))

    assert append(layout, packed[0], parse_reference(target)).base_digest == images[1].digest


def write_layouts(layout, images):
    for number, image in enumerate(images):
        image.write(layout.with_name(f"{layout.name}-{number}"))
        shutil.copytree(layout.with_name(f"{layout.name}-{number}"), layout, dirs_exist_ok=True)
    entries = [image.descriptor for image in images]
    index = {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": entries}
    (layout / "index.json").write_text(json.dumps(index))


def test_an_altered_layer_of_a_layout_is_7(packed, target, tmp_path, capsys):
    image = Parts()
    image.write(tmp_path / "base")
    path = tmp_path / "base" / "blobs" / "sha256" / digest_of(image.layers[0])[7:]
    path.write_bytes(image.layers[0][:-1] + b"?")

    assert run(capsys, "append", tmp_path / "base", packed[0], "-t", target)[0] == 7
    assert run(capsys, "append", tmp_path / "base", packed[0], "-t", tmp_path / "out")[0] == 7
    assert not (tmp_path / "out" / "index.json").exists()


def test_a_layout_comes_out_of_a_registry_or_a_layout_the_same(
    parts, base, packed, tmp_path, capsys
):
    parts.write(tmp_path / "base")
    name = f"{base(parts)}:v1"

    for number in range(2):  # the second finds all of it there
        code, out, _ = run(capsys, "append", name, packed[0], "--to", tmp_path / "one")
        (descriptor,) = read_index(tmp_path / "one").manifests
        assert (code, out) == (0, f"{descriptor.digest}\n"), number
    assert run(capsys, "append", tmp_path / "base", packed[0], "--to", tmp_path / "two")[0] == 0

    for out in ("one", "two"):
        (descriptor,) = read_index(tmp_path / out).manifests
        blobs = {path.name for path in (tmp_path / out / "blobs" / "sha256").iterdir()}
        plain = json.loads((tmp_path / out / "blobs/sha256" / descriptor.digest[7:]).read_text())
        named = [plain["config"], *plain["layers"]]
        assert blobs == {descriptor.digest[7:], *(each["digest"][7:] for each in named)}
        assert all(
            digest_of((tmp_path / out / "blobs/sha256" / name).read_bytes())[7:] == name
            for name in blobs
        )


def test_a_layout_with_something_else_is_not_written_over(base, packed, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    Parts().write(tmp_path / "theirs")
    name = f"{base(Parts())}:v1"

    for out in ("out", "theirs"):
        assert run(capsys, "append", name, packed[0], "--to", tmp_path / out)[0] == 2
    assert os.listdir(tmp_path / "out") == ["thesis.txt"]


@pytest.mark.parametrize("program", ["skopeo", "umoci"])
def test_others_read_the_layout(program, base, packed, tmp_path, capsys):
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    out = tmp_path / "out"
    assert run(capsys, "append", f"{base(Parts())}:v1", packed[0], "--to", out)[0] == 0
    copy = ["skopeo", "copy", "--insecure-policy", "-q", f"oci:{out}", f"oci:{tmp_path}/copy:v1"]
    subprocess.run(copy, check=True)

    if program == "umoci":
        unpack = ["umoci", "raw", "unpack", "--rootless", "--image", f"{tmp_path}/copy:v1"]
        subprocess.run([*unpack, tmp_path / "rootfs"], check=True, capture_output=True)
        assert (tmp_path / "rootfs" / "opt/prewarm/prewarm/manifest.json").is_file()
        assert (tmp_path / "rootfs" / "usr" / "1").is_file()
        return
    inspect = ["skopeo", "inspect", f"oci:{tmp_path}/copy:v1"]
    found = json.loads(subprocess.run(inspect, check=True, capture_output=True).stdout)
    assert "TRITON_CACHE_AUTOTUNING=1" in found["Env"]
    assert len(found["Layers"]) == 3


# The cache


def test_the_cache_may_be_in_a_registry_and_must_be_signed_where_a_key_is_named(
    base, packed, target, opened, tmp_path, capsys
):
    key = ec.generate_private_key(ec.SECP256R1())
    private, public = tmp_path / "k.key", tmp_path / "k.pub"
    pem = serialization.Encoding.PEM
    private.write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    public.write_bytes(
        key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    caches = f"{target}-caches"
    done = push(packed[0], parse_reference(f"{caches}:v1"), index="all")
    argv = ("append", f"{base(Parts())}:v1", f"{caches}:all", "-t", target, "--key", public)

    assert run(capsys, *argv)[0] == 7
    assert tags_of(opened(target)) == ()
    assert run(capsys, "sign", f"{caches}:v1", "--key", private)[0] == 0
    code, _, err = run(capsys, *argv)
    assert (code, done.identity in err) == (0, True)


def test_an_altered_cache_is_7_and_nothing_is_pushed(base, packed, target, opened, capsys):
    blobs = (packed[0] / "blobs" / "sha256").iterdir()
    layer = max(blobs, key=lambda path: path.stat().st_size)
    layer.write_bytes(layer.read_bytes()[:-1] + b"?")

    assert run(capsys, "append", f"{base(Parts())}:v1", packed[0], "-t", target)[0] == 7
    assert tags_of(opened(target)) == ()


def test_variables_of_the_keys_come_along(base, cache, target, opened, tmp_path):
    tools = msgspec.structs.replace(
        cache.manifest.toolchain, key_environment={"TRITON_DISABLE_LINE_INFO": "1"}
    )
    manifest = msgspec.structs.replace(cache.manifest, toolchain=tools)
    cache.with_index(manifest=manifest.digest, toolchain=tools)
    pack(manifest, cache.directory, tmp_path / "image")

    append_(f"{base(Parts())}:v1", tmp_path / "image", f"{target}:v1")

    assert "TRITON_DISABLE_LINE_INFO=1" in made_at(opened(target), "v1")[2]["config"]["Env"]


# Logins


def test_one_token_is_asked_for_pushing_and_for_mounting_from_the_base(
    start_registry, token_server, log_in, packed, opened, describe
):
    registry = start_registry(**token_server.settings)
    log_in(registry.host)
    Parts().push(opened(f"{registry.host}/a/base"), describe, "v1")
    token_server.asked.clear()

    done = append_(f"{registry.host}/a/base:v1", packed[0], f"{registry.host}/b/made:v1")

    assert done.base_layers == {"mounted": 2}
    assert {tuple(each["scope"]) for each in token_server.asked} == {
        ("repository:a/base:pull",),
        ("repository:b/made:pull,push",),
        ("repository:b/made:pull,push", "repository:a/base:pull"),
    }
