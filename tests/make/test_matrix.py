"""A fleet that is built in shards: real compiles, a shard that is killed, and what gather refuses.

Four deployments on three GPUs, their plans made before: of 10 launches 6 are distinct, and two
deployments keep different winners under one key.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from prewarm.core.fleet import Planned, groups_of, parse_part
from prewarm.core.manifest_yaml import write_manifest
from prewarm.core.select import select
from prewarm.core.shard import SHARD_NAME, Shard, shard_document
from prewarm.core.tunings_yaml import read_tunings, write_tunings
from prewarm.make.compile import compile_manifest
from prewarm.ship.install import install
from prewarm.ship.pack import pack
from prewarm.ship.shard import read_shard
from tests.directories import contents
from tests.make.tuned import CUMSUM, H100, kernel_of, only, tunings_of

H200 = "NVIDIA H200"
NORM = "l2norm_fwd_kernel2"
NAMES = ["all-h100", "norm-b200", "tuned-h100", "tuned-h200"]
MATRIX = """
schema: prewarm/matrix/v1
deployments:
- {name: all-h100, serve: sample, target: h100}
- {name: norm-b200, serve: sample, target: b200}
- {name: tuned-h100, serve: sample, target: h100, tunings: &winners [h100.yaml, h200.yaml]}
- {name: tuned-h200, serve: sample, target: h200, tunings: *winners}
- {name: of-another-release, serve: sample, target: h100, vllm: [0.0.1]}
"""


def prewarm(*argv, **environment):
    return subprocess.run(
        [sys.executable, "-m", "prewarm", *map(str, argv)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )


def shard_command(fleet, part, out):
    matrix, plans = fleet / "matrix.yaml", fleet / "plans"
    where = ["--matrix", matrix, "--plans", plans, "-o", out]
    return ["build", *where, "--closure", "0", "--shard", part, "-j", "2"]


def build_shard(fleet, part, out, **environment):
    done = prewarm(*shard_command(fleet, part, out), **environment)
    assert done.returncode == 0, done.stderr
    return done


def gather(out, *shards):
    done = prewarm("gather", *shards, "-o", out)
    assert done.returncode == 0, done.stderr
    return done


def rewrite(shard: Path, **changed) -> Shard:
    """Change the index of a shard."""
    found = msgspec.structs.replace(read_shard(shard), **changed)
    (shard / SHARD_NAME).write_bytes(shard_document(found))
    return found


@pytest.fixture(scope="module")
def plans(prefill_plan):
    """Return the manifest of each deployment by name."""
    hopper, blackwell = (prefill_plan(target) for target in ("h100", "b200"))
    whole = only(hopper, CUMSUM, NORM)
    deployment = msgspec.structs.replace(whole.deployment, target="h200")
    other = msgspec.structs.replace(whole, deployment=deployment)
    return dict(zip(NAMES, (whole, only(blackwell, NORM), whole, other), strict=True))


@pytest.fixture(scope="module")
def winners(plans):
    candidates = kernel_of(plans["all-h100"], CUMSUM).candidates
    return {"tuned-h100": {CUMSUM: candidates[0]}, "tuned-h200": {CUMSUM: candidates[-1]}}


@pytest.fixture(scope="module")
def fleet(plans, winners, tmp_path_factory):
    """A directory of the matrix, its tunings and its plans."""
    place = tmp_path_factory.mktemp("fleet")
    (place / "matrix.yaml").write_text(MATRIX)
    for name, plan in plans.items():
        write_manifest(place / "plans" / f"{name}.yaml", plan)
    for name, gpu in (("tuned-h100", H100), ("tuned-h200", H200)):
        tunings = tunings_of(plans[name], winners[name], gpu)
        write_tunings(place / f"{name.removeprefix('tuned-')}.yaml", tunings)
    return place


@pytest.fixture(scope="module")
def shards(fleet, tmp_path_factory):
    """The three shards of the fleet, and what was said; not to be changed."""
    out = tmp_path_factory.mktemp("three")
    said = [build_shard(fleet, f"{number}/3", out) for number in (1, 2, 3)]
    places = [out / f"shard-{number}-of-3" for number in (1, 2, 3)]
    assert [Path(done.stdout.strip()) for done in said] == places
    return places, "".join(done.stderr for done in said)


@pytest.fixture(scope="module")
def images(shards, tmp_path_factory):
    """The images of the three shards, and what was said."""
    out = tmp_path_factory.mktemp("gathered")
    return out / "images", gather(out, *shards[0])


def test_each_distinct_launch_is_compiled_once_across_deployments_and_shards(shards):
    places, said = shards
    launches = [launch for place in places for launch in read_shard(place).launches]

    assert len(launches) == len({launch.key for launch in launches}) == 6
    assert "4 deployments ask for 10 launches, 6 of them distinct" in said
    assert "skipped of-another-release: it is for vLLM 0.0.1, here is " in said
    assert "planning" not in said
    groups = {launch.group.rpartition("-")[0] for launch in launches}
    assert groups == {"h100", "b200"}


def test_an_image_is_what_compile_and_pack_make_of_its_deployment_alone(
    images, plans, winners, fleet, tmp_path
):
    directory, _ = images
    assert sorted(path.name for path in directory.iterdir()) == NAMES
    for name in ("all-h100", "tuned-h200"):
        selection = None
        if name in winners:
            selection = select(plans[name], read_tunings(fleet / "h200.yaml")).selection
        list(compile_manifest(plans[name], tmp_path / name, 2, selection))
        pack(plans[name], tmp_path / name, tmp_path / f"image of {name}")
        assert contents(directory / name) == contents(tmp_path / f"image of {name}")


def test_two_gpus_of_one_architecture_keep_their_own_winners_under_one_key(
    images, winners, tmp_path
):
    found = {}
    for name in winners:
        place = Path(install(images[0] / name, tmp_path / name).directory)
        (record,) = place.glob("*/*.autotune.json")
        ((config, _),) = json.loads(record.read_bytes())["configs_timings"]
        found[name] = record.parent.name, config

    keys = {key for key, _ in found.values()}
    assert len(keys) == 1
    for name, (_, config) in found.items():
        winner = winners[name][CUMSUM]
        assert (config["kwargs"], config["num_warps"]) == (winner.constexprs, winner.num_warps)
    assert found["tuned-h100"] != found["tuned-h200"]


def test_gather_prints_the_digest_of_each_image_by_name(images):
    directory, done = images
    lines = dict(line.split() for line in done.stdout.splitlines())

    assert sorted(lines) == NAMES
    for name, digest in lines.items():
        index = json.loads((directory / name / "index.json").read_bytes())
        assert [each["digest"] for each in index["manifests"]] == [digest]


GATHER = """
import importlib.abc, sys
class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "triton", "vllm", "transformers", "numpy"}:
            raise ImportError(f"the wall: {name}")
sys.meta_path.insert(0, Refuse())
from prewarm.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_gather_runs_where_the_engines_cannot_be_imported(shards, images, tmp_path):
    command = [sys.executable, "-c", GATHER, "gather", *shards[0], "-o", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)

    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "images") == contents(images[0])


def test_a_killed_shard_goes_on_where_it_was_and_one_shard_makes_the_same_images_as_three(
    fleet, images, tmp_path
):
    command = [sys.executable, "-m", "prewarm", *shard_command(fleet, "1/1", tmp_path), "-v"]
    process = subprocess.Popen(
        list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    for line in process.stderr:
        if ": compiled " in line:
            break
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    shard = tmp_path / "shard-1-of-1"
    assert not (shard / SHARD_NAME).exists()

    refused = prewarm("gather", shard, "-o", tmp_path)
    assert refused.returncode == 2
    assert f"the shard {shard} is not finished" in refused.stderr
    assert not (tmp_path / "images").exists()

    again = build_shard(fleet, "1/1", tmp_path)
    compiled = int(again.stderr.partition(" compiled, ")[0].rpartition("\n")[2])
    assert 0 < compiled < 6
    gather(tmp_path, shard)
    assert contents(tmp_path / "images") == contents(images[0])


def test_a_missing_shard_is_named_with_what_it_holds(shards, tmp_path):
    lost = next(place for place in shards[0] if read_shard(place).launches)
    others = [place for place in shards[0] if place != lost]

    refused = prewarm("gather", *others, "-o", tmp_path)

    number = read_shard(lost).part.number
    assert refused.returncode == 2
    assert f"of which shard {number}/3 is missing:\n" in refused.stderr
    assert not (tmp_path / "images").exists()


def test_a_shard_with_nothing_to_do_is_a_shard(shards, images, fleet, plans, tmp_path):
    planned = [Planned(name=name, manifest=plan) for name, plan in plans.items()]
    parts = [parse_part(f"{number}/99") for number in range(1, 100)]
    idle = next(p for p in parts if not groups_of(planned, p))
    build_shard(fleet, idle, tmp_path)
    (place,) = tmp_path.glob("shard-*")

    gather(tmp_path, place, *shards[0])

    assert not read_shard(place).launches
    assert contents(tmp_path / "images") == contents(images[0])


def test_shards_that_were_compiled_otherwise_conflict_by_name(shards, fleet, tmp_path):
    compiler = tmp_path / "another-cc"
    compiler.write_text('#!/bin/sh\nexec gcc "$@" -O0\n')
    compiler.chmod(0o755)
    place = next(place for place in shards[0] if read_shard(place).launches)
    number = read_shard(place).part.number
    build_shard(fleet, f"{number}/3", tmp_path, CC=str(compiler))
    other = tmp_path / place.name

    refused = prewarm("gather", *shards[0], other, "-o", tmp_path)

    assert refused.returncode == 7
    assert "shards hold different content under one key:\n" in refused.stderr
    assert "the host module cuda_utils: " in refused.stderr
    assert str(other) in refused.stderr
    assert "l2norm" not in refused.stderr
    assert not (tmp_path / "images").exists()


def test_a_shard_that_was_built_twice_alike_is_no_conflict(shards, images, tmp_path):
    again = shutil.copytree(shards[0][0], tmp_path / "again")

    gather(tmp_path, *shards[0], again)

    assert contents(tmp_path / "images") == contents(images[0])


def test_an_entry_that_changed_after_it_was_compiled_is_refused(shards, tmp_path):
    places = [shutil.copytree(place, tmp_path / place.name) for place in shards[0]]
    cubin = next(path for place in places for path in sorted(place.rglob("*.cubin")))
    data = cubin.read_bytes()
    cubin.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))

    refused = prewarm("gather", *places, "-o", tmp_path)

    assert refused.returncode == 7
    assert f"{cubin.parent} " in refused.stderr
    assert "is not what was compiled there" in refused.stderr


def test_shards_of_other_plans_are_refused_with_the_deployments_that_differ(shards, tmp_path):
    first, second, _ = shards[0]
    other = shutil.copytree(second, tmp_path / "other")
    deployments = read_shard(other).deployments
    changed = msgspec.structs.replace(deployments[1], manifest="sha256:" + "0" * 64)
    rewrite(other, deployments=(deployments[0], changed, *deployments[2:]))

    refused = prewarm("gather", first, other, "-o", tmp_path)

    assert refused.returncode == 2
    assert "are not shards of one fleet" in refused.stderr
    assert "\n  norm-b200\n" in refused.stderr


def test_a_shard_of_another_c_library_is_refused(shards, tmp_path):
    first, second, third = shards[0]
    other = shutil.copytree(second, tmp_path / "other")
    rewrite(other, libc="musl 1.2")

    refused = prewarm("gather", first, other, third, "-o", tmp_path)

    assert refused.returncode == 2
    assert "and musl 1.2" in refused.stderr


def test_a_shard_whose_names_leave_it_is_refused(shards, tmp_path):
    other = shutil.copytree(shards[0][0], tmp_path / "other")
    deployments = read_shard(other).deployments
    changed = msgspec.structs.replace(deployments[0], name="../all-h100")
    rewrite(other, deployments=(changed, *deployments[1:]))

    refused = prewarm("gather", other, "-o", tmp_path)

    assert refused.returncode == 7
    assert "'../all-h100'" in refused.stderr


def test_a_plan_of_another_deployment_is_made_again_and_an_error_names_the_deployment(
    fleet, tmp_path
):
    plan = tmp_path / "plans" / "other.yaml"
    plan.parent.mkdir()
    shutil.copy(fleet / "plans" / "all-h100.yaml", plan)
    (tmp_path / "matrix.yaml").write_text(
        "schema: prewarm/matrix/v1\n"
        "deployments: [{name: other, serve: ./nowhere -tp 2, target: h100}]\n"
    )

    done = prewarm("build", "--matrix", tmp_path / "matrix.yaml", "--plans-only", "-o", tmp_path)

    assert done.returncode == 2
    assert "planning other again: another deployment" in done.stderr
    assert "other: there is no model directory ./nowhere" in done.stderr
    assert plan.read_bytes() == (fleet / "plans" / "all-h100.yaml").read_bytes()


def test_plans_that_are_there_and_of_this_environment_are_used(fleet, tmp_path):
    shutil.copytree(fleet / "plans", tmp_path / "plans")
    before = contents(tmp_path / "plans")
    matrix = fleet / "matrix.yaml"

    done = prewarm("build", "--matrix", matrix, "--plans-only", "--closure", "0", "-o", tmp_path)

    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'plans'}\n"
    assert contents(tmp_path / "plans") == before


def test_the_number_of_a_shard_can_be_that_of_the_pod_in_its_indexed_job(fleet, tmp_path):
    command = shard_command(fleet, "job/9", tmp_path)
    without = prewarm(*command)
    assert without.returncode == 2
    assert "JOB_COMPLETION_INDEX, which is 'not set'" in without.stderr

    beyond = prewarm(*command, JOB_COMPLETION_INDEX="9")
    assert beyond.returncode == 2
    assert "'10/9' is not a part" in beyond.stderr


def test_a_matrix_with_nothing_for_this_environment_is_refused(tmp_path):
    (tmp_path / "matrix.yaml").write_text(
        "schema: prewarm/matrix/v1\n"
        "deployments: [{name: x, serve: m, target: b200, vllm: [0.0.1]}]\n"
    )

    done = prewarm("build", "--matrix", tmp_path / "matrix.yaml", "-o", tmp_path)

    assert done.returncode == 2
    assert "names nothing for vLLM" in done.stderr
