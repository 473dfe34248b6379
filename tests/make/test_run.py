"""A fleet whose last shard gathers it: real shards, killed at any moment, and a real registry.

What a pod of docker/kubernetes/fleet does is done here by processes: it builds its shard, then
looks whether it was the last.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from prewarm.cli import main
from prewarm.core.digest import digest_of
from prewarm.core.errors import InputError
from prewarm.core.fleet import Part
from prewarm.core.manifest_yaml import write_manifest
from prewarm.core.shard import SHARD_NAME
from prewarm.ship.choose import facts_of
from prewarm.ship.layout import blob_path, read_index, read_layout
from prewarm.ship.manifests import get_manifest, tags
from prewarm.ship.pull import pull
from prewarm.ship.reference import parse_reference
from prewarm.ship.registry import open_repository
from prewarm.ship.run import Run
from prewarm.ship.transport import NotThereError
from prewarm.ship.verify import verify_directory
from tests.make.tuned import CUMSUM, only
from tests.ship.registry.conftest import running

NORM = "l2norm_fwd_kernel2"
SHARDS = 3
DEPLOYMENTS = ["norm-b200", "norm-h100", "two-h100"]
MATRIX = """
schema: prewarm/matrix/v1
deployments:
- {name: norm-b200, serve: sample, target: b200}
- {name: norm-h100, serve: sample -tp 2, target: h100}
- {name: two-h100, serve: sample, target: h100}
"""
KILLER = Path(__file__).with_name("killed_gather.py")


@pytest.fixture(scope="module")
def fleet(prefill_plan, tmp_path_factory):
    """A directory of the matrix and its plans."""
    place = tmp_path_factory.mktemp("fleet")
    (place / "matrix.yaml").write_text(MATRIX)
    hopper, blackwell = (prefill_plan(target) for target in ("h100", "b200"))
    norm = only(hopper, NORM)
    sharded = msgspec.structs.replace(norm.deployment, serve_args=("sample", "-tp", "2"))
    plans = {
        "norm-b200": only(blackwell, NORM),
        "norm-h100": msgspec.structs.replace(norm, deployment=sharded),
        "two-h100": only(hopper, CUMSUM, NORM),
    }
    for name, plan in plans.items():
        write_manifest(place / "plans" / f"{name}.yaml", plan)
    return place


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    with running(tmp_path_factory.mktemp("registry")) as found:
        yield found


@pytest.fixture
def repository(registry, request):
    """A repository of the test's own."""
    return registry.name(f"t/{digest_of(request.node.nodeid.encode())[7:23]}")


class Pod:
    """What a pod of the Indexed Job runs, one command after the other."""

    def __init__(self, fleet, out, number, repository, run="a-job"):
        self.build = [
            *("build", "--matrix", fleet / "matrix.yaml", "--plans", fleet / "plans"),
            *("--closure", "0", "--shard", f"job/{SHARDS}", "-j", "1", "-o", out),
        ]
        self.gather = [
            *("gather", "--run", run, "--shard", f"job/{SHARDS}", "-o", out),
            *("--index", "fleet", "--push", repository),
        ]
        self.environment = {**os.environ, "JOB_COMPLETION_INDEX": str(number)}

    def start(self, verb):
        command = [sys.executable, "-m", "prewarm", *map(str, getattr(self, verb))]
        return subprocess.Popen(
            command,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, verb):
        process = self.start(verb)
        out, err = process.communicate(timeout=600)
        assert process.returncode == 0, err
        return out, err

    def live(self, lives):
        """Run both commands; each of `lives` is the second at which it is killed and begun anew."""
        for kills, life in enumerate([*lives, None]):
            until = None if life is None else time.monotonic() + life
            if self._once(until):
                return kills
        raise AssertionError("the last life has no end")

    def _once(self, until):
        for verb in ("build", "gather"):
            process = self.start(verb)
            left = 600 if until is None else max(0.0, until - time.monotonic())
            try:
                _, err = process.communicate(timeout=left)
            except subprocess.TimeoutExpired:
                # The compiler processes of a shard die with their pod.
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
                return False
            assert process.returncode == 0, err
        return True


@pytest.fixture(scope="module")
def built(fleet, tmp_path_factory):
    """An output directory with all shards built and nothing gathered; not to be changed."""
    out = tmp_path_factory.mktemp("built")
    for number in range(SHARDS):
        Pod(fleet, out, number, "unused").run("build")
    return out


@pytest.fixture
def out(built, tmp_path):
    """An output directory of the test's own."""
    return shutil.copytree(built, tmp_path / "out")


def index_of(repository, tag="fleet"):
    with open_repository(parse_reference(repository)) as opened:
        return get_manifest(opened, tag)


def check_complete(out, repository, directory):
    """Pull every image that the one index names, verify it, and compare it with the local one."""
    stored = index_of(repository)
    entries = {facts_of(each.annotations)["deployment"]: each for each in stored.index().manifests}
    assert sorted(entries) == DEPLOYMENTS
    for name, entry in entries.items():
        pulled = pull(
            parse_reference(f"{repository}:fleet"), directory / name, want={"deployment": name}
        )
        assert pulled.digest == entry.digest == read_layout(out / "images" / name).digest
        assert verify_directory(directory / name) == ()
    (local,) = read_index(out / "index").manifests
    assert local.digest == stored.digest
    assert blob_path(out / "index", local.digest).read_bytes() == stored.data
    with open_repository(parse_reference(repository)) as opened:
        assert len(tags(opened)) == len(DEPLOYMENTS) + 1
    return stored.digest


def lives(seed, count, longest):
    chance = random.Random(seed)
    return [[chance.uniform(0.2, longest) for _ in range(count)] for _ in range(SHARDS)]


def run_job(fleet, out, repository, killed_at):
    """Run all pods at once; return how often one was killed."""
    pods = [Pod(fleet, out, number, repository) for number in range(SHARDS)]
    with ThreadPoolExecutor(SHARDS) as pool:
        return sum(pool.map(Pod.live, pods, killed_at))


def test_shards_that_are_killed_and_begun_again_end_in_one_complete_index(
    fleet, repository, tmp_path
):
    kills = run_job(fleet, tmp_path, repository, lives(5, 1, 3))

    assert kills == SHARDS
    check_complete(tmp_path, repository, tmp_path / "pulled")


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(4))
def test_shards_that_are_killed_at_any_moment_end_in_one_complete_index(
    seed, fleet, repository, tmp_path, capsys
):
    kills = run_job(fleet, tmp_path, repository, lives(seed, 4, 12))

    with capsys.disabled():
        sys.stdout.write(f"seed {seed}: {kills} kills\n")
    first = check_complete(tmp_path, repository, tmp_path / "pulled")
    for number in range(SHARDS):
        Pod(fleet, tmp_path, number, repository, run="another").run("gather")
    assert check_complete(tmp_path, repository, tmp_path / "again") == first


def test_only_the_last_shard_gathers(fleet, out, repository, tmp_path):
    pods = [Pod(fleet, out, number, repository) for number in (2, 0, 1)]
    for pod, waiting in zip(pods[:-1], ["shard-1-of-3, shard-2-of-3", "shard-2-of-3"], strict=True):
        said, story = pod.run("gather")
        assert said == ""
        assert f"is finished; not yet: {waiting}\n" in story
        assert not (out / "images").exists()
        with pytest.raises(NotThereError):
            index_of(repository)

    said, _ = pods[-1].run("gather")

    digest = check_complete(out, repository, tmp_path / "pulled")
    lines = dict(line.split() for line in said.splitlines())
    assert list(lines) == [*DEPLOYMENTS, "fleet"]
    assert lines["fleet"] == f"{repository}@{digest}"


def test_shards_that_finish_at_the_same_time_make_one_index(fleet, out, repository, tmp_path):
    pods = [Pod(fleet, out, number, repository) for number in range(SHARDS)]
    begun = [pod.start("gather") for pod in pods]
    ended = [process.communicate(timeout=300) for process in begun]

    assert [process.returncode for process in begun] == [0] * SHARDS, ended
    assert sum("indexed 3 images" in story for _, story in ended) == 1
    check_complete(out, repository, tmp_path / "pulled")


def test_a_shard_of_an_earlier_run_counts_for_nothing(fleet, out, repository):
    for number in range(SHARDS):
        Pod(fleet, out, number, repository, run="first").run("gather")

    _, story = Pod(fleet, out, 0, repository, run="second").run("gather")

    assert "not yet: shard-2-of-3, shard-3-of-3" in story


def test_a_run_is_gathered_once(fleet, out, repository):
    for number in range(SHARDS):
        Pod(fleet, out, number, repository).run("gather")
    before = {path: path.stat().st_mtime_ns for path in (out / "index").rglob("*")}

    _, story = Pod(fleet, out, 0, repository).run("gather")

    assert "the run a-job is gathered already: fleet is sha256:" in story
    assert {path: path.stat().st_mtime_ns for path in (out / "index").rglob("*")} == before


def test_a_shard_that_is_not_finished_cannot_be_the_last(fleet, out, repository):
    (out / "shard-1-of-3" / SHARD_NAME).unlink()
    process = Pod(fleet, out, 0, repository).start("gather")
    _, story = process.communicate(timeout=300)

    assert process.returncode == 2
    assert f"the shard {out}/shard-1-of-3 is not finished" in story
    assert not (out / "runs").exists()


def test_a_shard_that_was_begun_again_is_waited_for(out):
    run = Run(out, "a-job", SHARDS)
    for number in range(1, SHARDS + 1):
        run.finish(Part(number=number, of=SHARDS))
    assert run.waits_for(patience=0) == ()
    index = out / "shard-2-of-3" / SHARD_NAME
    whole = index.read_bytes()

    index.unlink()
    assert run.waits_for(patience=0) == ("shard-2-of-3",)
    soon = threading.Timer(0.3, index.write_bytes, [whole])
    soon.start()
    assert run.waits_for(patience=60) == ()
    soon.join()
    index.write_bytes(whole + b" ")
    assert run.waits_for(patience=0) == ("shard-2-of-3",)


@pytest.mark.parametrize("name", ["", "..", "a/b", "x" * 129])
def test_a_run_has_the_name_of_a_directory(name, out):
    with pytest.raises(InputError, match="cannot name a run"):
        Run(out, name, SHARDS)


def test_a_gather_that_is_killed_at_any_change_is_gone_on_with(out, repository, tmp_path):
    run = Run(out, "a-job", SHARDS)
    for number in range(1, SHARDS + 1):
        run.finish(Part(number=number, of=SHARDS))
    with subprocess.Popen(
        [sys.executable, KILLER, out, str(SHARDS), repository],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:

        def gather(number):
            process.stdin.write(f"{number}\n")
            process.stdin.flush()
            return process.stdout.readline().strip()

        def index_or_none():
            try:
                return index_of(repository).digest
            except NotThereError:
                return None

        kills, seen = 0, set()
        for number in range(0, 1000, 4):
            state = gather(number)
            seen.add(index_or_none())
            if state != "killed":
                break
            kills += 1
        process.stdin.close()
    assert (process.returncode, state) == (0, "0")
    assert kills > 5
    digest = check_complete(out, repository, tmp_path / "pulled")
    assert seen <= {None, digest}


# The index


@pytest.fixture
def gathered(out, repository, capsys):
    """The printed lines of a gather of all shards, index and push included."""
    shards = [str(out / f"shard-{number}-of-3") for number in range(1, SHARDS + 1)]
    argv = ["gather", *shards, "-o", str(out), "--index", "fleet", "--push", repository]
    assert main(argv) == 0
    return argv, capsys.readouterr().out


def test_gathering_again_changes_nothing(gathered, out, repository, capsys):
    argv, said = gathered

    assert main(argv) == 0
    again = capsys.readouterr()
    assert again.out == said
    assert "3 images, 0 of them new" in again.err


def test_an_index_keeps_what_is_of_another_fleet(gathered, out, repository, capsys):
    before = index_of(repository)
    shards = [str(out / f"shard-{number}-of-3") for number in range(1, SHARDS + 1)]
    other = ["--mount-path", "/opt/other"]

    assert main([*gathered[0], *other]) == 0
    replaced = index_of(repository).index().manifests
    assert len(replaced) == len(DEPLOYMENTS)
    assert not {e.digest for e in replaced} & {e.digest for e in before.index().manifests}
    argv = ["gather", *shards, "-o", str(out), "--index", "other", "--push", repository]
    assert main(argv) == 0
    assert index_of(repository).index().manifests == replaced
    assert index_of(repository, "other").digest == before.digest


def test_what_fits_several_deployments_is_told_apart_by_their_names(
    gathered, repository, tmp_path, capsys
):
    want = ["--want", "arch=sm_90"]

    assert main(["pull", f"{repository}:fleet", str(tmp_path / "x"), *want]) == 2
    told = capsys.readouterr().err
    assert "2 images fit" in told
    assert "deployment norm-h100" in told
    want += ["--want", "deployment=norm-h100"]
    assert main(["install", f"{repository}:fleet", "--into", str(tmp_path / "in"), *want]) == 0


@pytest.mark.skipif(shutil.which("skopeo") is None, reason="skopeo is not installed")
def test_skopeo_copies_the_local_index_with_all_its_images(gathered, out, repository):
    copied = f"{repository}-copied"
    copy = ["skopeo", "copy", "--all", "--insecure-policy", "--dest-tls-verify=false"]
    done = subprocess.run(
        [*copy, f"oci:{out}/index:fleet", f"docker://{copied}:fleet"],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert index_of(copied).digest == index_of(repository).digest


def test_an_image_that_is_pushed_alone_replaces_that_of_its_deployment_only(
    gathered, out, repository, capsys
):
    image = out / "images" / "norm-h100"
    assert main(["push", str(image), repository, "--index", "fleet"]) == 0

    entries = index_of(repository).index().manifests
    assert len(entries) == len(DEPLOYMENTS)
    assert read_layout(image).digest in {entry.digest for entry in entries}


@pytest.mark.parametrize("broken", ["images", "registry"])
def test_an_index_names_no_image_that_is_not_whole(broken, out, repository, capsys):
    shards = [str(out / f"shard-{number}-of-3") for number in range(1, SHARDS + 1)]
    argv = ["gather", *shards, "-o", str(out), "--index", "fleet"]
    if broken == "images":
        (out / "index").mkdir()
        (out / "index" / "mine").write_text("")
        assert main(argv) == 2
        assert "neither empty nor an image layout" in capsys.readouterr().err
        assert os.listdir(out / "index") == ["mine"]
        return
    assert main([*argv, "--push", "127.0.0.1:1/nobody/listens", "--json"]) == 75
    assert json.loads(capsys.readouterr().err.splitlines()[-1])["exit_code"] == 75
    assert verify_directory(out / "images" / "two-h100") == ()
