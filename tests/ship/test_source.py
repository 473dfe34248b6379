"""What an install reads from, refused where it is not sound."""

import io
import json
import os
import tarfile

import msgspec
import pytest

from prewarm.core.digest import canonical_json, digest_of
from prewarm.core.errors import InputError
from prewarm.core.finding import UnsoundError
from prewarm.ship.image import Descriptor
from prewarm.ship.layer import compress, tar_of
from prewarm.ship.layout import read_layout
from prewarm.ship.source import open_source


def with_layer(out, tar, labels=None, diff_id=None):
    """Put another layer into the layout `out`, with every digest on the way made right."""

    def put(data):
        (out / "blobs" / "sha256" / digest_of(data)[7:]).write_bytes(data)
        return {"digest": digest_of(data), "size": len(data)}

    image = read_layout(out)
    config = json.loads(canonical_json(image.config))
    config["rootfs"]["diff_ids"] = [diff_id or digest_of(tar)]
    config["config"]["Labels"] |= {"dev.prewarm.layer-size": str(len(tar))} | (labels or {})
    manifest = json.loads(canonical_json(image.manifest))
    manifest["layers"][0] |= put(compress(tar))
    manifest["config"] |= put(canonical_json(config))
    index = json.loads((out / "index.json").read_bytes())
    index["manifests"][0] |= put(canonical_json(manifest))
    (out / "index.json").write_bytes(canonical_json(index))


def refused(out, code):
    with pytest.raises(UnsoundError) as caught:
        open_source(out)
    assert caught.value.finding.code == code
    return caught.value.finding


def test_a_layer_remade_with_the_same_files_is_sound(packed):
    out, made = packed
    files = open_source(out).files
    with_layer(out, tar_of(files, 12345))
    assert open_source(out).identity == made.identity


def test_a_layer_with_another_diff_id_than_its_own_is_refused(packed):
    out, made = packed
    with_layer(out, tar_of(open_source(out).files, 12345), diff_id=made.diff_id)
    assert refused(out, "P103").expected == made.diff_id


def test_a_missing_index_is_refused(packed):
    out, _ = packed
    files = open_source(out).files
    with_layer(out, tar_of({k: v for k, v in files.items() if "prewarm/m" not in k}, 0))
    refused(out, "P101")


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda files: files.pop(max(files)), "P101"),
        (lambda files: files.update({"io.triton.cache/extra": b""}), "P102"),
        (lambda files: files.update({"etc/passwd": b""}), "P102"),
        (lambda files: files.update({min(files): b"evil"}), "P103"),
    ],
)
def test_files_that_are_not_as_the_index_says_are_refused(packed, change, code):
    out, _ = packed
    files = open_source(out).files
    change(files)
    with_layer(out, tar_of(files, 0))
    refused(out, code)


def test_a_label_that_names_another_cache_is_refused(packed):
    out, _ = packed
    with_layer(out, read_layout(out).tar, {"dev.prewarm.identity": "sha256:" + "0" * 64})
    refused(out, "P106")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("../../evil", tarfile.REGTYPE),
        ("/evil", tarfile.REGTYPE),
        ("io.triton.cache/evil", tarfile.SYMTYPE),
        ("io.triton.cache/evil", tarfile.LNKTYPE),
        ("io.triton.cache/evil", tarfile.CHRTYPE),
    ],
)
def test_a_layer_that_would_write_elsewhere_is_refused(packed, name, kind):
    out, _ = packed
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "/etc/passwd"
    buffer = io.BytesIO(read_layout(out).tar)
    with tarfile.open(fileobj=buffer, mode="a") as tar:
        tar.addfile(info)
    with_layer(out, buffer.getvalue())
    refused(out, "P104")


def test_a_layer_larger_than_its_label_is_refused(packed):
    out, _ = packed
    with_layer(out, read_layout(out).tar, {"dev.prewarm.layer-size": "1024"})
    assert refused(out, "P103").found == "more"


@pytest.mark.parametrize("name", ["dev.prewarm.identity", "dev.prewarm.layer-size"])
def test_an_image_of_something_else_is_refused(packed, name):
    out, _ = packed
    with_layer(out, read_layout(out).tar, {name: None})
    with pytest.raises((InputError, UnsoundError)):
        open_source(out)


def test_a_directory_of_something_else_is_refused(tmp_path):
    with pytest.raises(InputError, match="neither an image layout nor a mounted cache image"):
        open_source(tmp_path)


def test_a_mounted_image_with_a_link_is_refused(packed, tmp_path):
    for path, data in open_source(packed[0]).files.items():
        (tmp_path / "tree" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tree" / path).write_bytes(data)
    os.symlink("/etc", tmp_path / "tree" / "io.triton.cache" / "evil")
    refused(tmp_path / "tree", "P104")


def test_fields_that_other_tools_add_are_let_pass(packed):
    out, made = packed
    index = json.loads((out / "index.json").read_bytes())
    index["manifests"][0]["platform"] = {"os": "linux", "architecture": "amd64"}
    (out / "index.json").write_bytes(canonical_json(index))
    assert open_source(out).image == made.manifest_digest
    assert msgspec.json.decode(b'{"mediaType":"a","digest":"b","size":1,"x":2}', type=Descriptor)


def mounted(packed, tmp_path):
    for path, data in open_source(packed[0]).files.items():
        (tmp_path / "tree" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tree" / path).write_bytes(data)
    return tmp_path / "tree"


@pytest.mark.parametrize("name", [b"\xff", b"a\nb", b"\x1b[2J"])
def test_a_mounted_image_with_a_name_that_cannot_be_printed_is_refused(packed, tmp_path, name):
    tree = mounted(packed, tmp_path)
    with open(os.fsencode(tree / "io.triton.cache") + b"/" + name, "w") as stream:
        stream.write("x")
    assert refused(tree, "P104").subject.isascii()


@pytest.mark.parametrize("name", ["prewarm/plan.yaml", "prewarm/manifest.json"])
def test_a_mounted_image_with_a_file_of_a_terabyte_is_refused_unread(packed, tmp_path, name):
    tree = mounted(packed, tmp_path)
    os.truncate(tree / name, 1 << 40)
    assert refused(tree, "P103").found == "more"


def test_a_mounted_image_with_a_fifo_for_a_file_is_refused(packed, tmp_path):
    tree = mounted(packed, tmp_path)
    (tree / "prewarm" / "plan.yaml").unlink()
    os.mkfifo(tree / "prewarm" / "plan.yaml")
    refused(tree, "P104")


@pytest.mark.parametrize("size", ["9" * 5000, "²", "-1", ""])
def test_a_size_that_is_none_is_refused(packed, size):
    out, _ = packed
    with_layer(out, read_layout(out).tar, {"dev.prewarm.layer-size": size})
    with pytest.raises(InputError, match="not a cache image"):
        open_source(out)


@pytest.mark.parametrize("data", [b'{"a": "\xff"}', b"[" * 100_000])
def test_an_index_that_cannot_be_decoded_is_refused(packed, data):
    out, _ = packed
    (out / "index.json").write_bytes(data)
    refused(out, "P105")
