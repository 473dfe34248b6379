"""A cache of winners: what is compiled, what Triton's autotuners find, what changes it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from prewarm.cli import main
from prewarm.core.cache import COMPILED_NAME, COMPILED_SCHEMA, Compiled, cache_document
from prewarm.core.document import parse_json
from prewarm.core.errors import CompileError, InputError
from prewarm.core.manifest import Candidate
from prewarm.core.manifest_yaml import write_manifest
from prewarm.core.selection import selected_launches
from prewarm.core.tunings_yaml import write_tunings
from prewarm.make import message
from prewarm.make.compile import compile_manifest
from prewarm.make.entries import sweep
from prewarm.make.fit import misfits
from prewarm.make.lookup import look_up
from prewarm.ship.install import install
from prewarm.ship.pack import pack
from prewarm.ship.source import open_source
from prewarm.ship.verify import held, installed_manifest, verify_directory
from tests.make.tuned import (
    B200,
    CUMSUM,
    H100,
    OUTPUT,
    TIME,
    beyond,
    kernel_of,
    only,
    selection_of,
    tunings_of,
)

HERE = Path(__file__).parent


def index_of(directory: Path) -> Compiled:
    data = (directory / COMPILED_NAME).read_bytes()
    return parse_json(data, Compiled, COMPILED_SCHEMA, COMPILED_NAME)


def records_in(directory: Path) -> dict[str, dict]:
    return {
        path.parent.name: json.loads(path.read_bytes())
        for path in directory.glob("*/*.autotune.json")
    }


def run(script: str, *arguments: object, **environment: str) -> dict:
    done = subprocess.run(
        [sys.executable, HERE / script, *map(str, arguments)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def plan(prefill_plan):
    return prefill_plan("b200")


@pytest.fixture(scope="module")
def winners(plan) -> dict[str, Candidate]:
    """The last candidate of every kernel, and of one kernel a config that it does not list."""
    tuned = [kernel for kernel in plan.kernels if kernel.candidates]
    found = {kernel.name.partition(":")[2]: kernel.candidates[-1] for kernel in tuned}
    return {**found, OUTPUT: beyond(kernel_of(plan, OUTPUT))}


@pytest.fixture(scope="module")
def cache(plan, winners, tmp_path_factory):
    """A directory of the winners alone; not to be changed."""
    directory = tmp_path_factory.mktemp("tuned") / "cache"
    list(compile_manifest(plan, directory, 2, selection_of(plan, winners)))
    return directory


@pytest.fixture(scope="module")
def image(plan, cache, tmp_path_factory):
    out = tmp_path_factory.mktemp("packed") / "image"
    pack(plan, cache, out)
    return out


@pytest.mark.parametrize("target", ["b200", "h100"])
def test_a_record_answers_the_very_question_that_tritons_autotuner_asks(
    prefill_plan, tmp_path, target
):
    write_manifest(tmp_path / "plan.yaml", prefill_plan(target))
    found = run("ask_autotuners.py", tmp_path / "plan.yaml", TRITON_CACHE_AUTOTUNING="1")
    assert len(found["asked"]) == 6
    assert found["written"] == found["asked"]


def test_only_winners_are_compiled_and_each_has_its_record(plan, winners, cache):
    index = index_of(cache)
    selection = selection_of(plan, winners)
    assert [each.launch for each in index.launches] == [
        launch.digest for launch in selected_launches(plan, selection)
    ]
    assert (len(index.launches), len(list(plan.launches()))) == (7, 89)
    assert index.selection == selection
    records = records_in(cache)
    assert {record.key for record in index.autotune_records} == set(records)
    assert len(records) == 6
    for record in index.autotune_records:
        winner = winners[record.kernel.partition(":")[2]]
        ((config, times),) = records[record.key]["configs_timings"]
        assert times == [TIME / 1000] * 3
        assert config["kwargs"] == winner.constexprs
        assert all(config[name] == value for name, value in winner.options().items())


@pytest.fixture(params=["installed", "mounted"])
def entries(request, plan, cache, image, tmp_path):
    """The directory that TRITON_CACHE_DIR names, with and without an install."""
    place = tmp_path / request.param
    if request.param == "installed":
        found = Path(install(image, place).directory)
    else:
        pack(plan, cache, tmp_path / "image", str(place))
        for name, data in open_source(tmp_path / "image").files.items():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_bytes(data)
        found = place / "io.triton.cache"
    assert verify_directory(place) == ()
    return found


def test_a_worker_finds_every_winner_and_compiles_builds_and_benchmarks_nothing(winners, entries):
    """Triton's own `Autotuner.run`, one winner outside the kernel's list."""
    before = sorted(entries.rglob("*"))
    found = run(
        "serve_tuned.py",
        "b200",
        TRITON_CACHE_DIR=str(entries),
        TRITON_CACHE_AUTOTUNING="1",
        CC="/nonexistent/cc",
    )
    assert found["counts"] == {"hits": 7, "compiles": 0, "launches": 7}
    assert found["winners"] == {
        function: {**config.constexprs, **config.options()} for function, config in winners.items()
    }
    assert sorted(entries.rglob("*")) == before


def test_without_the_record_the_same_worker_benchmarks(image, tmp_path):
    entries = Path(install(image, tmp_path / "installed").directory)
    for path in entries.glob(f"*/{OUTPUT}.autotune.json"):
        path.unlink()
    environment = {"TRITON_CACHE_DIR": str(entries), "TRITON_CACHE_AUTOTUNING": "1"}
    with pytest.raises(AssertionError, match=f"{OUTPUT} is benchmarked with"):
        run("serve_tuned.py", "b200", **environment)


def test_verify_asks_for_winners_only_and_for_every_record(image, tmp_path, capsys):
    assert main(["verify", str(image)]) == 0
    said = capsys.readouterr()
    assert said.out == "sound\n"
    assert "launches: 7 of 7 are hits\n" in said.err
    assert "autotune records: 6 of 6 name their winner\n" in said.err
    assert main(["install", str(image), "--into", str(tmp_path / "into"), "-q"]) == 0
    capsys.readouterr()
    assert main(["verify", str(tmp_path / "into"), "--json"]) == 0
    found = msgspec.json.decode(capsys.readouterr().out)
    assert (found["launches"], found["hits"]) == (7, 7)
    assert (found["winners"], found["records"]) == (6, 6)


def test_p303_a_record_that_is_missing_unreadable_or_of_another_winner(plan, cache, tmp_path):
    directory = shutil.copytree(cache, tmp_path / "cache")
    sweep(directory)
    pack(plan, directory, tmp_path / "image")
    found = held(tmp_path / "image")
    missing, unreadable, other = index_of(directory).autotune_records[:3]
    (directory / missing.key / missing.file).unlink()
    (directory / unreadable.key / unreadable.file).write_text("{")
    path = directory / other.key / other.file
    record = json.loads(path.read_bytes())
    record["configs_timings"][0][0]["num_warps"] = 2
    path.write_text(json.dumps(record))
    looked = look_up(plan, directory, found.manifest.selection)
    findings = misfits(found.manifest, plan, looked)
    assert {each.code for each in findings} == {"P303"}
    assert {each.subject.partition(":")[2]: each.found.partition(": ")[2] for each in findings} == {
        missing.kernel.partition(":")[2]: "there is no record of this key",
        unreadable.kernel.partition(":")[2]: "the record cannot be read",
        other.kernel.partition(":")[2]: "the record names BK=128, num_warps=2, num_stages=4,"
        " num_ctas=1",
    }


def test_p206_records_that_are_not_read_here_are_told_as_before(plan, image, tmp_path, monkeypatch):
    entries = Path(install(image, tmp_path / "into").directory)
    cached = installed_manifest(tmp_path / "into")
    monkeypatch.setenv("TRITON_CACHE_AUTOTUNING", "0")
    monkeypatch.setenv("VLLM_TRITON_FORCE_FIRST_CONFIG", "1")
    findings = misfits(cached, plan, look_up(plan, entries, cached.selection))
    assert [(each.code, each.subject) for each in findings] == [
        ("P206", "TRITON_CACHE_AUTOTUNING"),
        ("P206", "VLLM_TRITON_FORCE_FIRST_CONFIG"),
    ]


@pytest.fixture(scope="module")
def small(plan):
    """The manifest of one kernel with four candidates."""
    return only(plan, CUMSUM)


@pytest.fixture(scope="module")
def small_once(small, tmp_path_factory):
    directory = tmp_path_factory.mktemp("small") / "cache"
    first = kernel_of(small, CUMSUM).candidates[0]
    list(compile_manifest(small, directory, 2, selection_of(small, {CUMSUM: first})))
    return directory


@pytest.fixture
def small_cache(small_once, tmp_path):
    """A directory of the test's own in which the first candidate is the winner."""
    return shutil.copytree(small_once, tmp_path / "cache")


def warps_in(directory: Path) -> list[int]:
    """Return what the records in `directory` say of their configs, one by one."""
    return [
        config["num_warps"]
        for record in records_in(directory).values()
        for config, _ in record["configs_timings"]
    ]


def test_other_tunings_change_the_record_and_none_remove_it(small, small_cache):
    def compile_with(winner):
        selection = None if winner is None else selection_of(small, {CUMSUM: winner})
        outcomes = list(compile_manifest(small, small_cache, 2, selection))
        assert len(index_of(small_cache).autotune_records) == len(warps_in(small_cache))
        return [o.change for o in outcomes if isinstance(o, message.Recorded)]

    first, second = kernel_of(small, CUMSUM).candidates[:2]
    (path,) = small_cache.glob("*/*.autotune.json")
    mine, when = path.read_bytes(), path.stat().st_mtime_ns
    assert compile_with(first) == ["kept"]
    assert (path.read_bytes(), path.stat().st_mtime_ns) == (mine, when)
    path.write_text(json.dumps(as_a_gpu_measured(json.loads(mine), second.num_warps)))
    assert compile_with(first) == ["replaced"]
    assert path.read_bytes() == mine
    assert compile_with(second) == ["replaced"]
    assert warps_in(small_cache) == [second.num_warps]
    assert compile_with(None) == ["removed"]
    assert not path.parent.exists()
    assert len(index_of(small_cache).launches) == 4


def as_a_gpu_measured(record: dict, warps: int) -> dict:
    """Return `record` with another config besides, which is faster."""
    ((config, times),) = record["configs_timings"]
    faster = [{**config, "num_warps": warps}, [each / 2 for each in times]]
    return {**record, "configs_timings": [[config, times], faster]}


def test_an_index_never_describes_the_records_of_other_tunings(small, small_cache, tmp_path):
    """Cut short between the records and the index, the directory has no index."""
    second = kernel_of(small, CUMSUM).candidates[1]
    outcomes = compile_manifest(small, small_cache, 2, selection_of(small, {CUMSUM: second}))
    while not isinstance(next(outcomes), message.Recorded):
        pass
    outcomes.close()
    with pytest.raises(InputError, match="holds no prewarm-compiled"):
        pack(small, small_cache, tmp_path / "image")


def test_a_winner_that_does_not_compile_leaves_records_and_index_as_they_were(small, small_cache):
    before = records_in(small_cache), (small_cache / COMPILED_NAME).read_bytes()
    never = msgspec.structs.replace(kernel_of(small, CUMSUM).candidates[0], num_warps=3)
    with pytest.raises(CompileError, match="1 of 1 launches did not compile"):
        list(compile_manifest(small, small_cache, 2, selection_of(small, {CUMSUM: never})))
    assert (records_in(small_cache), (small_cache / COMPILED_NAME).read_bytes()) == before


def test_all_candidates_are_kept_besides_a_winner_that_is_none_of_them(small, tmp_path):
    winner = beyond(kernel_of(small, CUMSUM))
    selection = selection_of(small, {CUMSUM: winner}, all_candidates=True)
    list(compile_manifest(small, tmp_path, 2, selection))
    assert len(index_of(tmp_path).launches) == 5
    looked = look_up(small, tmp_path, selection)
    assert [answer.hit for answer in looked.answers] == [True] * 5
    assert [answer.reason for answer in looked.records] == [None]


def test_a_key_that_tunings_do_not_name_keeps_its_candidates_and_has_no_record(plan, tmp_path):
    manifest = only(plan, CUMSUM, OUTPUT)
    winner = kernel_of(plan, OUTPUT).candidates[0]
    list(compile_manifest(manifest, tmp_path, 2, selection_of(manifest, {OUTPUT: winner})))
    index = index_of(tmp_path)
    assert len(index.launches) == 1 + 4
    assert [record.file for record in index.autotune_records] == [f"{OUTPUT}.autotune.json"]
    packed = pack(manifest, tmp_path, tmp_path / "image")
    assert not packed.tuned
    assert packed.first_start.startswith(
        "benchmarks the candidates of 1 of 2 tuning keys, 4 in all (about 1 s on an H100)"
    )
    assert packed.first_start.endswith(f"; winners were measured on {B200}")


def test_other_candidates_than_the_planned_ones_are_refused(small, tmp_path):
    kernel = small.kernels[0]
    fewer = msgspec.structs.replace(kernel, candidates=kernel.candidates[:3])
    asked = msgspec.structs.replace(fewer.specializations[0], candidates=(0, 1, 2))
    fewer = msgspec.structs.replace(fewer, specializations=(asked,))
    manifest = msgspec.structs.replace(small, kernels=(fewer,))
    selection = selection_of(manifest, {CUMSUM: kernel.candidates[0]})
    with pytest.raises(InputError, match="planned with other candidates of\n.*" + CUMSUM):
        list(compile_manifest(manifest, tmp_path, 2, selection))
    assert not (tmp_path / COMPILED_NAME).exists()


def test_the_order_in_which_a_winner_is_spelled_leaves_no_trace(plan, tmp_path):
    manifest = only(plan, OUTPUT)
    winner = kernel_of(manifest, OUTPUT).candidates[0]
    turned = Candidate(
        constexprs=dict(reversed(winner.constexprs.items())),
        num_warps=winner.num_warps,
        num_stages=winner.num_stages,
    )
    made = []
    for name, config in (("one", winner), ("another é", turned)):
        directory = tmp_path / name
        list(compile_manifest(manifest, directory, 1, selection_of(manifest, {OUTPUT: config})))
        made.append(pack(manifest, directory, tmp_path / f"image of {name}"))
    assert list(winner.constexprs) != list(turned.constexprs)
    assert made[0].identity == made[1].identity
    assert made[0].manifest_digest == made[1].manifest_digest


def test_pack_refuses_an_index_that_lacks_the_record_of_a_winner(small, small_cache, tmp_path):
    index = msgspec.structs.replace(index_of(small_cache), autotune_records=())
    (small_cache / COMPILED_NAME).write_bytes(cache_document(index))
    with pytest.raises(InputError, match="there are 0 autotune records of 1 winners"):
        pack(small, small_cache, tmp_path / "image")


@pytest.fixture
def files(small, tmp_path):
    """The manifest, and tunings of a B200 and of an H100, as files."""
    winner = kernel_of(small, CUMSUM).candidates[0]
    write_manifest(tmp_path / "plan.yaml", small)
    for name, gpu in (("b200", B200), ("h100", H100)):
        write_tunings(tmp_path / f"{name}.yaml", tunings_of(small, {CUMSUM: winner}, gpu))
    return tmp_path


def test_a_user_compiles_and_packs_with_tunings(files, capsys):
    cache = str(files / "cache")
    argv = ["compile", str(files / "plan.yaml"), "--cache-dir", cache]

    assert main([*argv, "--tunings", str(files / "b200.yaml")]) == 0
    said = capsys.readouterr()
    assert said.out == "1 compiled, 0 cached, 0 unbound, 1 recorded\n"
    assert (
        f"tunings of {B200} settle 1 of 1 tuning keys: 1 launches, 4 with every candidate\n"
        in said.err
    )
    assert said.err.endswith(
        "the first start with it compiles nothing and benchmarks nothing;"
        f" winners were measured on {B200}\n"
    )
    packing = ["pack", *argv[1:], "-o", str(files / "image"), "-q"]
    assert main(packing) == 0
    capsys.readouterr()
    assert main(["show", str(files / "image")]) == 0
    assert f"1, for every tuning key, measured on {B200}" in capsys.readouterr().out

    assert main([*argv, "--tunings", str(files / "b200.yaml"), "--all-candidates"]) == 0
    assert capsys.readouterr().out == "3 compiled, 1 cached, 0 unbound, 1 recorded\n"

    assert main(argv) == 0
    said = capsys.readouterr()
    assert said.out == "0 compiled, 4 cached, 0 unbound, 0 recorded\n"
    assert f"removed 1 autotune records of other tunings in {cache}\n" in said.err
    assert "the first start with it benchmarks the candidates of 1 of 1 tuning keys" in said.err
    assert "`prewarm tune`" in said.err


def test_tunings_of_another_gpu_are_refused_and_on_request_marked(files, capsys):
    argv = ["compile", str(files / "plan.yaml"), "--cache-dir", str(files / "cache")]
    argv += ["--tunings", str(files / "h100.yaml")]

    assert main(argv) == 2
    said = capsys.readouterr()
    assert f"the tunings were measured on {H100}, the manifest is for {B200}" in said.err
    assert not (files / "cache").exists()

    assert main([*argv, "--tunings-of-another-gpu"]) == 0
    said = capsys.readouterr()
    assert f"winners were measured on {H100}, another GPU than the target\n" in said.err
    packing = ["pack", str(files / "plan.yaml"), "--cache-dir", str(files / "cache")]
    assert main([*packing, "-o", str(files / "image"), "-q"]) == 0
    cached = installed_manifest(files / "image")
    assert (cached.tuned, cached.selection.foreign, cached.selection.gpu) == (True, True, H100)


@pytest.mark.parametrize("option", ["--all-candidates", "--tunings-of-another-gpu"])
def test_options_about_tunings_without_any_are_refused(files, option, capsys):
    argv = ["compile", str(files / "plan.yaml"), "--cache-dir", str(files / "cache"), option]

    assert main(argv) == 2
    assert capsys.readouterr().err.startswith(f"prewarm: error: {option} says how tunings are")
