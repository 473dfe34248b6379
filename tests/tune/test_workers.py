"""Tuning keys shared out over worker processes, some of which die (the GPU is a fake)."""

from __future__ import annotations

import pytest

from prewarm.core.digest import canonical_json
from prewarm.core.errors import TuneError
from prewarm.core.manifest import Candidate
from prewarm.core.target import target_named
from prewarm.core.toolchain import Ptxas, Toolchain
from prewarm.tune.message import Share, Task
from prewarm.tune.workers import measure, probe

WORKER = "tests.tune.fake_worker"
TOOLCHAIN = Toolchain(
    vllm="0.25.1",
    torch="2.11.0",
    cuda="13.0",
    triton="3.6.0",
    triton_key="sha256:0",
    ptxas=Ptxas(version="12.9", text="sha256:1", chosen_by="triton"),
    python_abi="cpython-311",
    machine="x86_64",
    libc="glibc 2.36",
)


def share(kernel: str, configs: int) -> Share:
    warps = tuple(Candidate(num_warps=2**n, num_stages=2) for n in range(configs))
    return Share(kernel=kernel, key={"H": 16}, configs=warps, listed=configs - 1)


SHARES = (share("m:a", 4), share("m:b", 2), share("m:c", 3), share("m:d", 1))


def task_in(directory):
    def task(gpu, shares=(), checked=()):
        return Task(
            gpu=gpu,
            target=target_named("h100"),
            toolchain=TOOLCHAIN,
            capture="",
            cache_dir=str(directory),
            shares=shares,
            checked=checked,
        )

    return task


@pytest.mark.parametrize("gpus", [("0",), ("0", "1"), ("0", "1", "2", "3", "4", "5")])
def test_every_key_comes_back_in_order_from_any_number_of_gpus(tmp_path, gpus):
    found = measure(SHARES, gpus, task_in(tmp_path), worker=WORKER)

    assert [len(key.configs) for key in found.keys] == [4, 2, 3, 1]
    assert {started.uuid for started in found.started} <= set(gpus)
    assert len(found.started) == min(len(gpus), len(SHARES))


def test_a_config_that_kills_its_worker_fails_and_the_others_are_measured_elsewhere(tmp_path):
    deadly = SHARES[0].configs[2]
    told = []
    # every share with that config loses it, each over a worker of its own
    (tmp_path / "dies").write_text(canonical_json(deadly).decode())

    found = measure(SHARES, ("0", "1"), task_in(tmp_path), told.append, worker=WORKER)

    failed = {
        (key.share, number): config.failed
        for key in found.keys
        for number, config in enumerate(key.configs)
        if config.failed
    }
    assert set(failed) == {(0, 2), (2, 2)}
    error = "torch.AcceleratorError: CUDA error: an illegal memory access was encountered"
    assert set(failed.values()) == {f"a worker died over it: {error}"}
    assert all(config.choosing for config in found.keys[0].configs if not config.failed)
    assert any(f"died ({error})" in text and "go elsewhere" in text for text in told)


def test_what_a_dead_worker_found_is_not_asked_again(tmp_path):
    (tmp_path / "dies").write_text(canonical_json(SHARES[0].configs[3]).decode())

    measure(SHARES, ("0",), task_in(tmp_path), worker=WORKER)

    checked = (tmp_path / "checked").read_text().splitlines()
    assert len(checked) == len(set(checked)) == sum(len(s.configs) for s in SHARES) - 1


def test_one_gpu_alone_tries_again_after_its_worker_died(tmp_path):
    (tmp_path / "flaky").write_text("0")

    told = []
    found = measure(SHARES, ("0",), task_in(tmp_path), told.append, worker=WORKER)

    assert all(config.choosing for key in found.keys for config in key.configs)
    assert any("died (it ended with -9)" in text for text in told)


def test_a_gpu_that_does_not_start_is_left_alone(tmp_path):
    (tmp_path / "silent").write_text("1")

    found = measure(SHARES, ("0", "1"), task_in(tmp_path), worker=WORKER)

    assert {started.uuid for started in found.started} == {"0"}
    assert all(config.choosing for key in found.keys for config in key.configs)


def test_when_no_worker_lives_the_error_names_the_kernels_and_the_last_words(tmp_path):
    (tmp_path / "silent").write_text("0\n1")

    with pytest.raises(TuneError, match=r"(?s)workers died over.*m:[abcd].*no such device"):
        measure(SHARES, ("0", "1"), task_in(tmp_path), worker=WORKER)


def test_a_probe_says_what_the_worker_runs_with(tmp_path):
    assert probe(task_in(tmp_path)("0"), WORKER).toolchain == TOOLCHAIN


def test_a_probe_of_a_dead_gpu_is_an_error_with_its_last_words(tmp_path):
    (tmp_path / "silent").write_text("0")

    with pytest.raises(TuneError, match="no such device"):
        probe(task_in(tmp_path)("0"), WORKER)
