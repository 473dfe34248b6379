"""A fleet whose images hold FlashInfer's library: built once, shipped to each that calls it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from prewarm.core.cache import FLASHINFER
from prewarm.core.flashinfer import BLACKWELL, HOPPER, PrefillCall
from prewarm.core.flashinfer_file import read_built
from prewarm.core.fleet import Part, Planned, libraries_of, library_of
from prewarm.core.manifest import Elsewhere, Manifest
from prewarm.core.manifest_yaml import read_manifest, write_manifest
from prewarm.core.shard import SHARD_NAME, shard_document
from prewarm.flashinfer.hopper import OBJECTS
from prewarm.make.compile import compile_manifest
from prewarm.ship.install import install
from prewarm.ship.pack import pack
from prewarm.ship.shard import read_shard
from tests.directories import contents

Asked = Callable[..., Elsewhere]
ROOT = Path(__file__).parents[2]
RECORDER = ROOT / "tests/make/record_sample.py"
MATRIX = """
schema: prewarm/matrix/v1
deployments:
- {name: few-heads, serve: sample, target: h100, flashinfer: true}
- {name: many-heads, serve: sample, target: h200, flashinfer: true}
- {name: without, serve: sample, target: h100}
- {name: blackwell, serve: sample, target: b200, flashinfer: true}
"""
SHARD = "shard-1-of-1"


def prewarm(*argv):
    return subprocess.run(
        [sys.executable, "-m", "prewarm", *map(str, argv)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )


@pytest.fixture(scope="module")
def plans(asked: Asked, call: PrefillCall, tmp_path_factory) -> dict[str, Manifest]:
    """Return by name manifests of a few real launches, that call FlashInfer."""

    def sample(target: str) -> Manifest:
        out = tmp_path_factory.mktemp("sample") / f"{target}.yaml"
        subprocess.run(
            [sys.executable, RECORDER, target, out], check=True, capture_output=True, timeout=300
        )
        return read_manifest(out)

    hopper, blackwell = sample("h100"), sample("b200")
    other = msgspec.structs.replace(hopper.deployment, target="h200")
    more = msgspec.structs.replace(call, query_heads=16, value_heads=64)
    return {
        "few-heads": calling(hopper, asked(HOPPER, call)),
        "many-heads": calling(
            msgspec.structs.replace(hopper, deployment=other), asked(HOPPER, more)
        ),
        "without": calling(hopper, asked(HOPPER, call)),
        "blackwell": calling(blackwell, asked(BLACKWELL, call)),
    }


def calling(manifest: Manifest, module: Elsewhere) -> Manifest:
    return msgspec.structs.replace(manifest, elsewhere=(module,))


def planned(plans: dict[str, Manifest], name: str) -> Planned:
    return Planned(name=name, manifest=plans[name], flashinfer=name != "without")


@pytest.fixture(scope="module")
def shard(plans, built: Path, tmp_path_factory):
    """Return the only shard of the fleet and what was said; its objects were compiled before."""
    place = tmp_path_factory.mktemp("fleet")
    (place / "matrix.yaml").write_text(MATRIX)
    for name, plan in plans.items():
        write_manifest(place / "plans" / f"{name}.yaml", plan)
    library = library_of(planned(plans, "few-heads"))
    assert library is not None
    kept = place / SHARD / "flashinfer" / library.name
    shutil.copytree(built / OBJECTS, kept / OBJECTS)
    matrix = ("--matrix", place / "matrix.yaml", "--closure", "0")
    done = prewarm("build", *matrix, "--shard", "1/1", "-j", "2", "-o", place)
    assert done.returncode == 0, done.stderr
    return place / SHARD, done.stderr


def gather(*shards: Path, out: Path):
    return prewarm("gather", *shards, "-o", out)


def test_deployments_that_call_the_same_instances_share_a_library_in_one_part(plans):
    fleet = [planned(plans, name) for name in plans]
    few, many, without, blackwell = map(library_of, fleet)

    assert few is not None
    assert many is not None
    assert few.name == many.name
    assert (without, blackwell) == (None, None)
    parts = [libraries_of(fleet, Part(number=number, of=3)) for number in (1, 2, 3)]
    assert sorted(map(len, parts)) == [0, 0, 1]


def test_it_is_built_once_and_what_images_will_lack_is_told(shard):
    directory, said = shard

    assert len(read_shard(directory).libraries) == 1
    assert said.count(f"building {HOPPER} with nvcc ") == 1
    assert "0 of 3 parts are to be compiled" in said
    assert f"left out of without: 1 of {HOPPER}, which FlashInfer compiles when serving" in said
    assert "6.6 GiB of memory a job: `flashinfer: true` in the matrix\n" in said
    assert f"left out of blackwell: 1 of {BLACKWELL}, which FlashInfer compiles in every" in said
    assert "left out of few-heads" not in said


def test_each_image_is_what_compile_and_pack_make_of_its_deployment_alone(
    shard, plans, built: Path, tmp_path: Path
):
    done = gather(shard[0], out=tmp_path)

    assert done.returncode == 0, done.stderr
    for name in ("few-heads", "many-heads", "without"):
        list(compile_manifest(plans[name], tmp_path / name, 2))
        flashinfer = None if name == "without" else built
        pack(plans[name], tmp_path / name, tmp_path / f"{name}.image", flashinfer=flashinfer)
        assert contents(tmp_path / "images" / name) == contents(tmp_path / f"{name}.image")
    installed = Path(install(tmp_path / "images/many-heads", tmp_path / "installed").directory)
    (called,) = read_built(installed.parent / FLASHINFER).calls
    assert (called.query_heads, called.value_heads) == (16, 64)


@pytest.mark.parametrize("file", ["aot/*/*.so", "python/*/__init__.py", "*.json"])
def test_a_library_that_changed_after_it_was_built_is_refused(file, shard, tmp_path: Path):
    other = shutil.copytree(shard[0], tmp_path / SHARD)
    (changed,) = other.glob(f"flashinfer/*/{file}")
    changed.write_bytes(changed.read_bytes() + b"\n")

    refused = gather(other, out=tmp_path)

    assert refused.returncode == 7
    assert f"(the library {HOPPER} of FlashInfer) is not what was compiled there" in refused.stderr
    assert not (tmp_path / "images").exists()


def test_a_library_that_lost_a_file_is_refused(shard, tmp_path: Path):
    other = shutil.copytree(shard[0], tmp_path / SHARD)
    (finder,) = other.glob("flashinfer/*/python/*/__init__.py")
    finder.unlink()

    refused = gather(other, out=tmp_path)

    assert refused.returncode == 7
    assert f"{finder} was compiled there and is gone" in refused.stderr


def test_images_without_their_library_are_refused_by_name(shard, tmp_path: Path):
    other = shutil.copytree(shard[0], tmp_path / SHARD)
    index = read_shard(other)
    entries = tuple(each for each in index.entries if not each.place.startswith("flashinfer/"))
    index = msgspec.structs.replace(index, libraries=(), entries=entries)
    (other / SHARD_NAME).write_bytes(shard_document(index))

    refused = gather(other, out=tmp_path)

    assert refused.returncode == 2
    assert "few-heads: its library of FlashInfer\n" in refused.stderr
    assert not (tmp_path / "images").exists()
