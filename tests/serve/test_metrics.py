"""Metrics: what processes publish, what a registry makes of it, what vLLM's server answers."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("prometheus_client")

from prometheus_client import CollectorRegistry, generate_latest

from prewarm.serve import counts, metrics
from prewarm.serve.counts import Count, Counts
from prewarm.serve.metrics import STATE, Collector, publish, published, state_directory


def of(pid, rank, *, ready=True, **values) -> Counts:
    return Counts(
        pid=pid,
        rank=rank,
        cache="sha256:0",
        ready=ready,
        counts=tuple(
            Count(what=what, subject="m:k", phase="inference", planned=True, value=value)
            for what, value in values.items()
        ),
    )


def page(state) -> list[str]:
    """Return the lines that a scrape gets, comments left out."""
    registry = CollectorRegistry()
    registry.register(Collector(state))
    lines = generate_latest(registry).decode().splitlines()
    return [line for line in lines if not line.startswith("#")]


def test_each_rank_has_its_line_and_processes_of_one_rank_add_up(tmp_path):
    publish(tmp_path, of(1, 0, hits=2))
    publish(tmp_path, of(2, 1, hits=3))
    publish(tmp_path, of(3, 1, hits=4))

    hits = [line for line in page(tmp_path) if "hits" in line]

    assert hits == [
        f'prewarm_triton_hits_total{{kernel="m:k",phase="inference",planned="yes",rank="{rank}"}}'
        f" {value}"
        for rank, value in ((0, 2.0), (1, 7.0))
    ]


def test_a_process_replaces_what_it_published(tmp_path):
    publish(tmp_path, of(1, 0, hits=2))
    publish(tmp_path, of(1, 0, hits=5))

    assert [each.total("hits") for each in published(tmp_path)] == [5]
    assert [path.name for path in tmp_path.iterdir()] == ["1.json"]


def test_ranks_are_ready_one_by_one(tmp_path):
    publish(tmp_path, of(1, 0))
    publish(tmp_path, of(2, 1, ready=False))

    (ready,) = [line for line in page(tmp_path) if "ready" in line]

    assert ready.startswith('prewarm_ready{cache="sha256:0",rank="0",version="')
    assert ready.endswith("} 1.0")


def test_a_file_that_is_not_ours_or_was_cut_off_spoils_nothing(tmp_path):
    publish(tmp_path, of(1, 0, hits=2))
    (tmp_path / "2.json").write_text('{"pid": 2, "counts": [')
    (tmp_path / "3.json").mkdir()

    assert [each.pid for each in published(tmp_path)] == [1]


def test_every_thing_that_is_counted_has_its_metric(tmp_path):
    names = [getattr(counts, name) for name in dir(counts) if name.isupper()]
    things = set(names) - {counts.START_UP, counts.UNBOUND, counts.INFERENCE}
    publish(tmp_path, of(1, 0, **dict.fromkeys(things, 1)))

    lines = [line for line in page(tmp_path) if "rank" in line and "ready" not in line]

    assert len(lines) == len(things) == 10


def test_the_first_process_makes_the_directory_and_the_others_inherit_it(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    script = (
        "import os, subprocess, sys\n"
        "from prewarm.serve.metrics import state_directory\n"
        "state, first = state_directory(os.environ)\n"
        "print(state, first, flush=True)\n"
        "if first: subprocess.run([sys.executable, __file__], check=True)\n"
        "if first and os.fork() == 0: sys.exit(0)\n"
        "if first: os.wait()\n"
        "assert state.is_dir()\n"
    )
    (tmp_path / "process.py").write_text(script)
    environment = {k: v for k, v in os.environ.items() if k != STATE}
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, tmp_path / "process.py"],
        env={**environment, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        check=True,
    )

    (one, first), (two, second) = (line.split() for line in done.stdout.splitlines())
    assert (one, first, second) == (two, "True", "False")
    assert not Path(one).exists()


def test_what_a_killed_process_left_is_removed_by_the_next_one_and_no_other(monkeypatch, tmp_path):
    monkeypatch.setattr(metrics, "_MEMORY", str(tmp_path))
    script = (
        "import os; from prewarm.serve import metrics\n"
        f"metrics._MEMORY = {str(tmp_path)!r}\n"
        "print(metrics.state_directory(os.environ)[0], flush=True)\n"
        "os._exit(0)"
    )
    environment = {k: v for k, v in os.environ.items() if k != STATE}
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**environment, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        check=True,
    )
    left = Path(done.stdout.strip())
    assert left.is_dir()

    ours, _ = state_directory({})
    other, _ = state_directory({})

    assert sorted(tmp_path.iterdir()) == sorted([ours, other])


def test_a_directory_that_is_gone_is_made_anew(tmp_path):
    environment = {STATE: str(tmp_path / "gone")}

    state, first = state_directory(environment)

    assert first
    assert environment[STATE] == str(state) != str(tmp_path / "gone")


@pytest.mark.parametrize("several", [False, True], ids=["one server", "several servers"])
def test_vllm_s_own_endpoint_shows_the_workers_counts(process, tmp_path, several):
    environment = {"TRITON_CACHE_DIR": tmp_path / "triton", "PREWARM": "1"}
    if several:
        environment["PROMETHEUS_MULTIPROC_DIR"] = tmp_path

    seen = process("scrape.py", **environment)

    ours = [line for line in seen["page"].splitlines() if line.startswith("prewarm_")]
    label = 'kernel="served_kernels:settle",phase="inference",planned="no",rank="1"'
    assert f"prewarm_triton_compiles_total{{{label}}} 1.0" in ours
    assert sum(line.startswith("prewarm_ready") for line in ours) == 1
    assert "vllm_test_total 1.0" in seen["page"], "the server's own metrics are still there"
