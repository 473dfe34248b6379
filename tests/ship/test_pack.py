"""Pack: one directory, one manifest, one digest."""

import os
import random
import shutil
import subprocess
import sys

import pytest

from prewarm.core.errors import InputError
from prewarm.ship.pack import pack
from prewarm.ship.source import open_source
from prewarm.ship.verify import verify_directory

DIGESTS = ("identity", "diff_id", "manifest_digest")


def digests(made):
    return [getattr(made, name) for name in DIGESTS]


def shuffled(directory, into, seed=1):
    """Copy `directory` file by file in another order, with other modes and times."""
    draw = random.Random(seed)
    files = [path for path in directory.rglob("*") if path.is_file()]
    draw.shuffle(files)
    for path in files:
        copy = into / path.relative_to(directory)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
        copy.chmod(draw.choice([0o600, 0o644, 0o755, 0o777]))
        os.utime(copy, (draw.randrange(2**31), draw.randrange(2**31)))
    return into


def test_order_times_and_modes_do_not_matter(cache, packed, tmp_path):
    other = shuffled(cache.directory, tmp_path / "another place" / "cache")
    again = pack(cache.manifest, other, tmp_path / "again")
    assert digests(again) == digests(packed[1])
    assert again.sizes == packed[1].sizes


PACK_AS = """
import os, sys
from pathlib import Path
from prewarm.core.manifest_yaml import read_manifest
from prewarm.ship.pack import pack
manifest, cache, out, umask, user = sys.argv[1:]
manifest = read_manifest(Path(manifest))
os.umask(int(umask, 8))
if user != "0":
    os.setgid(int(user)), os.setuid(int(user))
made = pack(manifest, Path(cache), Path(out))
print(made.identity, made.diff_id, made.manifest_digest)
"""


@pytest.mark.parametrize(
    ("umask", "user"),
    [
        ("077", "0"),
        ("000", "0"),
        pytest.param(
            "027",
            "65534",
            marks=pytest.mark.skipif(os.geteuid() != 0, reason="only root can change its user"),
        ),
    ],
)
def test_umask_and_user_do_not_matter(cache, packed, public_directory, umask, user):
    from prewarm.core.manifest_yaml import write_manifest

    write_manifest(public_directory / "manifest.yaml", cache.manifest)
    shutil.copytree(cache.directory, public_directory / "cache")
    subprocess.run(["chmod", "-R", "a+rX", public_directory], check=True)
    arguments = [public_directory / name for name in ("manifest.yaml", "cache", "out")]
    found = subprocess.run(
        [sys.executable, "-c", PACK_AS, *arguments, umask, user],
        check=True,
        capture_output=True,
        text=True,
    )
    assert found.stdout.split() == digests(packed[1])


def test_the_time_of_the_image_is_source_date_epoch(cache, packed, tmp_path, monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    dated = pack(cache.manifest, cache.directory, tmp_path / "dated")
    assert dated.identity == packed[1].identity
    assert dated.diff_id != packed[1].diff_id


def test_the_mount_path_changes_the_layer_and_not_the_identity(cache, packed, tmp_path):
    mounted = pack(cache.manifest, cache.directory, tmp_path / "m", "/opt/prewarm")
    assert mounted.identity == packed[1].identity
    assert mounted.diff_id != packed[1].diff_id
    assert open_source(tmp_path / "m").manifest == open_source(packed[0]).manifest


def test_triton_finds_all_entries_where_the_image_is_mounted(cache, tmp_path, triton_lookup):
    place = tmp_path / "mounted here"
    pack(cache.manifest, cache.directory, tmp_path / "m", f"{place}/")
    unpack(tmp_path / "m", place)
    assert verify_directory(place) == ()
    assert [entry["hit"] for entry in triton_lookup(place / "io.triton.cache")] == [True] * 4


def test_at_another_place_triton_finds_none_and_verify_says_so(cache, tmp_path, triton_lookup):
    pack(cache.manifest, cache.directory, tmp_path / "m", "/opt/prewarm")
    unpack(tmp_path / "m", tmp_path / "elsewhere")
    (finding,) = verify_directory(tmp_path / "elsewhere")
    assert finding.code == "P205"
    assert finding.expected == f"{tmp_path}/elsewhere/io.triton.cache"
    assert finding.found == "/opt/prewarm/io.triton.cache"
    hits = [e["hit"] for e in triton_lookup(tmp_path / "elsewhere" / "io.triton.cache")]
    assert hits == [False] * 4


@pytest.mark.parametrize("path", ["relative", "/", "/a/../b", ""])
def test_a_mount_path_that_is_no_absolute_directory_is_refused(cache, tmp_path, path):
    with pytest.raises(InputError, match="not an absolute directory below /"):
        pack(cache.manifest, cache.directory, tmp_path / "m", path)


def test_sizes_are_those_of_the_stages(cache, packed):
    out, made = packed
    keys = {e.key for e in (*cache.compiled.launches, *cache.compiled.host_modules)}
    compiled = sum(p.stat().st_size for k in keys for p in (cache.directory / k).iterdir())
    assert made.sizes.compiled == compiled
    assert made.sizes.slim == sum(map(len, open_source(out).files.values()))
    assert made.sizes.layer in {p.stat().st_size for p in (out / "blobs" / "sha256").iterdir()}
    assert made.files == len(open_source(out).files)


def unpack(layout, into):
    """Lay the layer's files down as a container engine does."""
    for name, data in open_source(layout).files.items():
        (into / name).parent.mkdir(parents=True, exist_ok=True)
        (into / name).write_bytes(data)
