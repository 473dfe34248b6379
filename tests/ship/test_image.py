"""The image around a layer."""

import json

import msgspec
import pytest

from prewarm.core.errors import UnsupportedError
from prewarm.ship.image import image_of, tag_of
from prewarm.ship.layer import compress, tar_of
from prewarm.ship.layout import read_layout
from prewarm.ship.members import files_of
from prewarm.ship.pack import pack
from prewarm.ship.tree import cache_tree


def documents(out):
    blobs = out / "blobs" / "sha256"
    index = json.loads((out / "index.json").read_bytes())
    read = {path.name: path.read_bytes() for path in blobs.iterdir()}
    manifest = json.loads(read[index["manifests"][0]["digest"].partition(":")[2]])
    config = json.loads(read[manifest["config"]["digest"].partition(":")[2]])
    return manifest, config


def test_it_is_a_plain_image(packed):
    out, made = packed
    manifest, config = documents(out)
    assert "artifactType" not in manifest
    assert manifest["schemaVersion"] == 2
    assert manifest["mediaType"] == "application/vnd.oci.image.manifest.v1+json"
    assert manifest["config"]["mediaType"] == "application/vnd.oci.image.config.v1+json"
    (layer,) = manifest["layers"]
    assert layer["mediaType"] == "application/vnd.oci.image.layer.v1.tar+gzip"
    assert config["rootfs"] == {"type": "layers", "diff_ids": [made.diff_id]}
    assert (config["os"], config["created"]) == ("linux", "1970-01-01T00:00:00Z")


def test_labels_fit_kserve_s_limit(packed):
    _, config = documents(packed[0])
    assert max(len(text) for text in config["config"]["Labels"].values()) <= 4096


@pytest.mark.parametrize("mount_path", [None, "/opt/prewarm"])
def test_mcv_finds_its_labels(cache, tmp_path, mount_path):
    """As MCV counts: the bytes of what it extracts, in the paths of which the mount path stands."""
    pack(cache.manifest, cache.directory, tmp_path / "image", mount_path)
    labels = documents(tmp_path / "image")[1]["config"]["Labels"]
    extracted = files_of(read_layout(tmp_path / "image").tar)
    size = sum(len(d) for p, d in extracted.items() if p.startswith("io.triton.cache/"))
    assert labels["cache.triton.image/entry-count"] == "4"
    assert labels["cache.triton.image/cache-size-bytes"] == str(size)
    assert json.loads(labels["cache.triton.image/summary"]) == {
        "targets": [{"backend": "cuda", "arch": "100", "warp_size": 32}]
    }


def test_it_says_where_to_mount_it_only_when_made_for_a_place(packed, cache, tmp_path):
    plain = documents(packed[0])[1]["config"]["Labels"]
    assert "io.kserve.km/cache-root-env" not in plain
    pack(cache.manifest, cache.directory, tmp_path / "mounted", "/opt/prewarm")
    labels = documents(tmp_path / "mounted")[1]["config"]["Labels"]
    root = labels["io.kserve.km/cache-root-env"]
    assert root == "TRITON_CACHE_DIR=/opt/prewarm/io.triton.cache"
    assert labels["io.kserve.km/cache-type"] == "triton"
    assert labels["io.kserve.km/cache-mount-subpath"] == "."
    assert "io.kserve.km/cache-mounts" not in labels
    assert labels["dev.prewarm.mount-path"] == "/opt/prewarm"


def labels_of(cache, out):
    pack(cache.manifest, cache.directory, out)
    manifest, config = documents(out)[:2]
    labels = config["config"]["Labels"]
    kept = {name: labels.get(f"dev.prewarm.{name}") for name in TUNING}
    assert {name: manifest["annotations"].get(f"dev.prewarm.{name}") for name in TUNING} == kept
    return labels["dev.prewarm.first-start"], tuple(kept.values())


TUNING = ("tuned", "tuned-on", "tunings", "tunings-of-another-gpu")


def test_it_says_what_a_first_start_still_does(cache, tmp_path):
    said, tuning = labels_of(cache, tmp_path / "untuned")
    assert said == (
        "benchmarks the candidates of 1 of 1 tuning keys, 3 in all (about 1 s on an H100), because"
        " there are no tunings of them: `prewarm tune` makes some where the GPU is"
    )
    assert tuning == ("false", None, None, None)


def test_it_says_on_which_gpu_it_was_tuned(tuned, tmp_path):
    said, tuning = labels_of(tuned, tmp_path / "tuned")
    on = "winners were measured on NVIDIA B200"
    assert said == f"compiles nothing and benchmarks nothing; {on}"
    digest = tuned.compiled.selection.tunings
    assert tuning == ("true", "NVIDIA B200", digest, None)
    unbound = tuned.with_index(unbound=("sha256:" + "0" * 64,))
    assert labels_of(unbound, tmp_path / "unbound")[0] == f"compiles 1 unbound launches; {on}"


def test_tunings_of_another_gpu_are_marked(tuned, tmp_path):
    other = {"gpu": "NVIDIA H100 80GB HBM3", "foreign": True}
    selection = msgspec.structs.replace(tuned.compiled.selection, **other)
    said, tuning = labels_of(tuned.with_index(selection=selection), tmp_path / "image")
    assert said.endswith("measured on NVIDIA H100 80GB HBM3, another GPU than the target")
    assert tuning == ("true", "NVIDIA H100 80GB HBM3", selection.tunings, "true")


def test_the_tag_is_one_a_registry_takes(packed):
    out, made = packed
    fingerprint = made.identity[7:19]
    assert made.tag == f"vllm-0.25.1_cu129-triton-3.6.0-sm100-{fingerprint}"
    assert read_layout(out).identity == made.identity


@pytest.mark.parametrize(("machine", "name"), [("x86_64", "amd64"), ("aarch64", "arm64")])
def test_the_architecture_is_that_of_the_host_modules(cache, machine, name):
    image = _image(cache, machine)
    assert json.loads(image.config)["architecture"] == name


def test_an_unknown_architecture_is_refused(cache):
    with pytest.raises(UnsupportedError, match="no image can be made for 'sparc'"):
        _image(cache, "sparc")


def _image(cache, machine):
    tools = msgspec.structs.replace(cache.compiled.toolchain, machine=machine)
    cache = cache.with_index(toolchain=tools)
    tree = cache_tree(cache.manifest, cache.directory)
    assert tag_of(tree).startswith("vllm-")
    tar = tar_of(tree.files, 0)
    return image_of(tree, tar, compress(tar), None, 0)
