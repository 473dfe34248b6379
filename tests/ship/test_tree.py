"""From the directory that compile filled to the files of an image."""

import json
import shutil

import msgspec
import pytest

from prewarm.core.cache import CACHE_MANIFEST, ENTRIES, MCV_INDEX, PLAN
from prewarm.core.digest import digest_of
from prewarm.core.errors import InputError
from prewarm.core.manifest_yaml import parse_manifest
from prewarm.ship.check import read_index
from prewarm.ship.entry import key_of, parse_group
from prewarm.ship.tree import cache_tree


@pytest.fixture
def tree(cache):
    return cache_tree(cache.manifest, cache.directory)


def test_of_an_entry_only_cubin_metadata_and_group_are_kept(tree, cache):
    for launch in cache.compiled.launches:
        name = launch.kernel.partition(":")[2]
        kept = {p.rpartition("/")[2] for p in tree.files if f"/{launch.key}/" in p}
        assert kept == {f"{name}.cubin", f"{name}.json", f"__grp__{name}.json"}
        cubin = tree.files[f"{ENTRIES}/{launch.key}/{name}.cubin"]
        assert cubin == (cache.directory / launch.key / f"{name}.cubin").read_bytes()


def test_groups_belong_to_no_directory_yet(tree):
    groups = [p for p in tree.files if "__grp__" in p]
    assert len(groups) == 4
    assert {parse_group(tree.files[p], key_of(p)).root for p in groups} == {".triton/cache"}


def test_nothing_names_a_directory_of_the_build_machine(tree, cache):
    for path, data in tree.files.items():
        if not path.endswith((".cubin", ".so")):
            assert str(cache.directory).encode() not in data, path
            assert b"libdevice.10.bc" not in data or b"/libdevice.10.bc" not in data, path


def test_host_modules_are_kept_as_they_are(tree, cache):
    (module,) = cache.compiled.host_modules
    kept = tree.files[f"{ENTRIES}/{module.key}/{module.file}"]
    assert kept == (cache.directory / module.key / module.file).read_bytes()


def test_the_index_lists_every_other_file_with_its_digest(tree, cache):
    index = read_index(tree.files[CACHE_MANIFEST])
    assert index == tree.manifest
    listed = {f.path: (f.digest, f.size) for f in index.files}
    others = {p: d for p, d in tree.files.items() if p != CACHE_MANIFEST}
    assert listed == {path: (digest_of(data), len(data)) for path, data in others.items()}
    assert tree.identity == digest_of(tree.files[CACHE_MANIFEST])
    assert index.manifest == cache.manifest.digest
    assert index.sources == {"kernels:add": digest_of(b"add"), "kernels:scale": digest_of(b"scale")}


def test_the_plan_is_the_manifest(tree, cache):
    assert parse_manifest(tree.files[PLAN].decode(), PLAN) == cache.manifest


def test_mcv_finds_its_index(tree, cache):
    entries = json.loads(tree.files[MCV_INDEX])["triton"]
    assert len(entries) == 4
    assert {(e["backend"], e["arch"], e["warp_size"], e["num_warps"]) for e in entries} == {
        ("cuda", "100", 32, 4)
    }
    assert [e["hash"] for e in entries] == sorted(e["hash"] for e in entries)


def test_what_is_not_in_the_index_stays_behind(tree, cache):
    key = cache.compiled.launches[0].key
    (cache.directory / key / "lock").touch()
    (cache.directory / key / "tmp.pid_1_x").mkdir()
    (cache.directory / key / "tmp.pid_1_x" / "add.cubin").write_bytes(b"half")
    shutil.copytree(cache.directory / key, cache.directory / ("B" * 52))
    again = cache_tree(cache.manifest, cache.directory)
    assert again.files == tree.files
    assert again.manifest == tree.manifest


def test_it_is_tuned_when_every_tuning_key_has_its_record(tree, tuned):
    assert not tree.manifest.tuned
    assert cache_tree(tuned.manifest, tuned.directory).manifest.tuned


def refused(cache, manifest=None):
    with pytest.raises(InputError) as caught:
        cache_tree(manifest or cache.manifest, cache.directory)
    assert "prewarm compile" in caught.value.hint
    return caught.value.message


def test_another_manifest_is_refused(cache):
    other = msgspec.structs.replace(cache.manifest, geometry={"heads": 8})
    message = refused(cache, other)
    assert cache.manifest.digest in message
    assert other.digest in message


def test_a_directory_that_was_not_compiled_is_refused(cache):
    (cache.directory / "prewarm-compiled.json").unlink()
    assert refused(cache).endswith("holds no prewarm-compiled.json: No such file or directory")


def test_an_index_that_is_not_one_is_refused(cache):
    (cache.directory / "prewarm-compiled.json").write_text("{}")
    with pytest.raises(InputError, match="expected a document of schema prewarm/compiled/v1"):
        cache_tree(cache.manifest, cache.directory)


@pytest.mark.parametrize("suffix", [".cubin", ".json"])
def test_a_missing_file_is_refused(cache, suffix):
    key = cache.compiled.launches[-1].key
    (cache.directory / key / f"scale{suffix}").unlink()
    assert f"{key}/scale{suffix} is not there" in refused(cache)


def test_a_missing_entry_is_refused(cache):
    key = cache.compiled.launches[0].key
    shutil.rmtree(cache.directory / key)
    assert f"the entry {key} is not there" in refused(cache)


def test_a_missing_host_module_is_refused(cache):
    (module,) = cache.compiled.host_modules
    (cache.directory / module.key / module.file).unlink()
    assert f"{module.key}/{module.file} is not there" in refused(cache)


def test_an_entry_in_another_s_place_is_refused(cache):
    first, second = (launch.key for launch in cache.compiled.launches[:2])
    shutil.copyfile(cache.directory / first / "add.json", cache.directory / second / "add.json")
    assert f"{second}/add.json is not the metadata of that entry" in refused(cache)


def test_entries_of_another_gpu_are_refused(cache):
    assert "is for sm_100, the index says sm_90" in refused(cache.with_index(arch=90))


def test_a_key_that_leaves_the_directory_is_refused(cache):
    (module,) = cache.compiled.host_modules
    outside = cache.directory.parent / "outside.so"
    outside.write_bytes(b"x")
    for changes in ({"key": ".."}, {"file": "../../outside.so"}):
        evil = msgspec.structs.replace(module, **{"file": outside.name, **changes})
        assert "is not a file of a cache" in refused(cache.with_index(host_modules=(evil,)))
