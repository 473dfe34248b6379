"""The image layout: written whole, read with every digest checked."""

import json
import os
import shutil
import subprocess

import pytest

from prewarm.core.digest import digest_of
from prewarm.core.errors import HostError, InputError
from prewarm.core.finding import UnsoundError
from prewarm.ship.layout import read_layout
from prewarm.ship.pack import pack


def blob(out, digest):
    return out / "blobs" / "sha256" / digest.partition(":")[2]


def layer_of(out):
    return blob(out, read_layout(out).manifest.layers[0].digest)


@pytest.mark.skipif(shutil.which("skopeo") is None, reason="skopeo is not installed")
def test_skopeo_reads_and_copies_it(packed, tmp_path):
    out, made = packed
    found = subprocess.run(["skopeo", "inspect", f"oci:{out}"], check=True, capture_output=True)
    image = json.loads(found.stdout)
    assert image["Digest"] == made.manifest_digest
    assert image["Labels"]["dev.prewarm.identity"] == made.identity
    copy = ["skopeo", "copy", "--insecure-policy", f"oci:{out}:{made.tag}", f"oci:{tmp_path}/copy"]
    subprocess.run(copy, check=True, capture_output=True)
    assert read_layout(tmp_path / "copy") == read_layout(out)


@pytest.mark.skipif(shutil.which("umoci") is None, reason="umoci is not installed")
def test_umoci_unpacks_it(packed, tmp_path):
    out, made = packed
    unpack = ["umoci", "unpack", "--rootless", "--image", f"{out}:{made.tag}", tmp_path / "bundle"]
    subprocess.run(unpack, check=True, capture_output=True)
    index = tmp_path / "bundle" / "rootfs" / "prewarm" / "manifest.json"
    assert digest_of(index.read_bytes()) == made.identity


def test_packing_again_replaces_the_image_and_leaves_nothing_of_the_old(packed, tuned):
    out, first = packed
    second = pack(tuned.manifest, tuned.directory, out)
    assert second.manifest_digest != first.manifest_digest
    assert read_layout(out).digest == second.manifest_digest
    assert len(list((out / "blobs" / "sha256").iterdir())) == 3


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda out: (out / "thesis.txt").write_text("mine"), id="files"),
        pytest.param(lambda out: (out.rmdir(), out.write_text("mine")), id="a file"),
        pytest.param(lambda out: (out.rmdir(), out.symlink_to(out.parent)), id="a link"),
    ],
)
def test_what_is_not_a_layout_is_not_overwritten(cache, tmp_path, snapshot, spoil):
    out = tmp_path / "out"
    out.mkdir()
    spoil(out)
    before = snapshot(tmp_path)
    with pytest.raises(InputError):
        pack(cache.manifest, cache.directory, out)
    assert snapshot(tmp_path) == before


def test_an_image_made_by_others_is_not_overwritten(packed, cache, snapshot):
    out, _ = packed
    index = json.loads((out / "index.json").read_bytes())
    index["manifests"][0]["annotations"] = {}
    (out / "index.json").write_text(json.dumps(index))
    before = snapshot(out)
    with pytest.raises(InputError, match="not made here"):
        pack(cache.manifest, cache.directory, out)
    assert snapshot(out) == before


def test_a_place_that_cannot_be_written_is_the_host_s_fault(cache):
    with pytest.raises(HostError, match="cannot write the image"):
        pack(cache.manifest, cache.directory, cache.directory / "prewarm-compiled.json" / "out")


def test_a_directory_that_is_no_layout_is_refused(tmp_path):
    with pytest.raises(InputError, match="has no file 'oci-layout'"):
        read_layout(tmp_path)


def test_several_images_are_refused(packed):
    out, _ = packed
    index = json.loads((out / "index.json").read_bytes())
    index["manifests"] *= 2
    (out / "index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match="holds 2 images"):
        read_layout(out)


def truncate(path):
    os.truncate(path, path.stat().st_size - 1)


def alter(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def extend(path):
    with path.open("ab") as stream:
        stream.write(b"x")


def link(path):
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def fifo(path):
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (truncate, "P103"),
        (alter, "P103"),
        (extend, "P103"),
        (os.unlink, "P101"),
        (link, "P104"),
        (fifo, "P104"),
    ],
)
@pytest.mark.parametrize("which", ["manifest", "config", "layer"])
def test_a_spoilt_blob_is_refused(packed, spoil, code, which):
    out, made = packed
    image = read_layout(out)
    digests = {
        "manifest": made.manifest_digest,
        "config": image.manifest.config.digest,
        "layer": image.manifest.layers[0].digest,
    }
    spoil(blob(out, digests[which]))
    with pytest.raises(UnsoundError) as caught:
        read_layout(out)
    assert caught.value.finding.code == code


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"digest": "sha256:../../../etc/passwd"}, "P104"),
        ({"digest": "md5:0"}, "P104"),
        ({"size": -1}, "P103"),
        ({"size": 1 << 40}, "P103"),
        ({"size": "many"}, "P105"),
    ],
)
def test_a_descriptor_that_lies_is_refused(packed, change, code):
    out, _ = packed
    index = json.loads((out / "index.json").read_bytes())
    index["manifests"][0] |= change
    (out / "index.json").write_text(json.dumps(index))
    with pytest.raises(UnsoundError) as caught:
        read_layout(out)
    assert caught.value.finding.code == code


@pytest.mark.parametrize("text", ["", "[]", "{", "null"])
def test_an_index_that_cannot_be_read_is_refused(packed, text):
    out, _ = packed
    (out / "index.json").write_text(text)
    with pytest.raises(UnsoundError, match="P105"):
        read_layout(out)
