"""What MCV and KServe read of an image, by their own rules as of the versions that docs name."""

import json
import re

import yaml

from prewarm.ship.layout import read_layout
from prewarm.ship.members import files_of
from prewarm.ship.pack import pack

DIGEST = "sha256:" + "0" * 64


def packed_for(cache, out, mount_path):
    """Return files and labels of the image of `cache` for that place."""
    pack(cache.manifest, cache.directory, out, mount_path)
    image = read_layout(out)
    return files_of(image.tar), image.config.config.labels


def test_what_mcv_extracts_hits_where_the_image_was_packed_for(cache, tmp_path, triton_lookup):
    """MCV writes what is below `io.triton.cache/`, as it is, into a directory."""
    directory = tmp_path / "root" / "io.triton.cache"
    files, _ = packed_for(cache, tmp_path / "image", str(directory.parent))
    for path, data in files.items():
        if path.startswith("io.triton.cache/"):
            place = directory / path.removeprefix("io.triton.cache/")
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(data)

    assert [entry["hit"] for entry in triton_lookup(directory)] == [True] * 4


def test_mcv_s_index_has_the_types_of_its_go_structs(cache, tmp_path):
    """A JSON value of another type than the struct's is an error to MCV, not a miss."""
    files, labels = packed_for(cache, tmp_path / "image", None)
    entries = json.loads(files["io.triton.manifest/manifest.json"])["triton"]
    types = {"hash": str, "backend": str, "arch": str, "warp_size": int}
    types |= {"num_stages": int, "num_warps": int, "ptx_version": int}
    for entry in entries:
        assert {name: type(value) for name, value in entry.items()} == {
            name: kind for name, kind in types.items() if name in entry
        }
    assert len(entries) == int(labels["cache.triton.image/entry-count"])
    (target,) = json.loads(labels["cache.triton.image/summary"])["targets"]
    for entry in entries:
        assert {name: entry[name] for name in target} == target


def test_mcv_reads_the_metadata_of_each_kernel(cache, tmp_path):
    """Of the fields that its struct types, those that are there have that type, or are null."""
    files, _ = packed_for(cache, tmp_path / "image", None)
    types = {"hash": str, "name": str, "num_warps": int, "num_ctas": int, "num_stages": int}
    types |= {"debug": bool, "shared": int, "arch": str, "warp_size": int}
    types |= {"backend_name": str, "extern_libs": list, "supported_fp8_dtypes": list}
    kernels = [
        json.loads(data)
        for path, data in files.items()
        if path.startswith("io.triton.cache/") and path.endswith(".json") and "__grp__" not in path
    ]
    assert len(kernels) == 4
    for kernel in kernels:
        for name, kind in types.items():
            assert isinstance(kernel.get(name), kind | None), name
        assert all(len(library) == 2 for library in kernel["extern_libs"])


def test_the_kernel_cache_of_the_documentation_fits_the_image_and_the_crd(cache, tmp_path, root):
    """The patterns are those of kernelcaches.serving.kserve.io, v1alpha1."""
    text = (root / "docs" / "kubernetes.md").read_text("utf-8")
    (document,) = (
        found
        for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
        if (found := yaml.safe_load(block))["kind"] == "KernelCache"
    )
    _, labels = packed_for(cache, tmp_path / "image", "/prewarm/cache")

    artifact = document["spec"].pop("artifact")
    assert document["apiVersion"] == "serving.kserve.io/v1alpha1"
    assert document["spec"] == {"mountType": "oci"}
    assert set(artifact) == {"imageReference", "cachePaths", "identity"}
    assert set(artifact["identity"]) == {"footprints"}
    reference = artifact["imageReference"].replace("sha256:…", DIGEST)
    assert re.fullmatch(r".+@sha256:[a-f0-9]{64}", reference)
    (path,) = artifact["cachePaths"]
    assert path["ociPath"] == "io.triton.cache"
    assert re.fullmatch(r"/[^$\x00]+", path["containerPath"])
    assert labels["io.kserve.km/cache-root-env"] == f"TRITON_CACHE_DIR={path['containerPath']}"
