"""The whole experiment on a virtual GPU: vLLM's engine, real Triton, launches that do nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from prewarm.core.files import locked
from prewarm.core.flashinfer import HOPPER
from prewarm.core.manifest_yaml import read_manifest
from prewarm.core.target import target_named
from prewarm.make.compile import compile_manifest
from prewarm.prove.prove import CACHE, Plan, prove
from prewarm.ship.environment import environment
from prewarm.ship.install import install
from prewarm.ship.pack import pack

TARGET = "h200"
QUICK = Plan(plays=target_named(TARGET), cold=False, prompt=100, repeats=2, random_workloads=3)


@pytest.fixture(scope="session")
def served(planned, model_configs) -> tuple[tuple[str, ...], Path, dict[str, str]]:
    """Return serve arguments, an installed cache for them and the variables that it needs.

    The prefill is FlashInfer's, so that no kernel is autotuned and few are compiled.
    """
    serve_args = (str(model_configs / "Qwen3.5-0.8B"), "--max-num-batched-tokens", "512")
    file = planned(TARGET, *serve_args)
    manifest = read_manifest(file)
    shared = file.parent / "proved"
    shared.mkdir(exist_ok=True)
    with locked(shared / "lock"):
        if not (shared / "installed" / "triton").exists():
            for _ in compile_manifest(manifest, shared / "compiled", jobs=1):
                pass
            pack(manifest, shared / "compiled", shared / "image")
            install(shared / "image", shared / "installed")
    entries = shared / "installed" / "triton"
    variables = {each.name: each.value for each in environment(str(entries), manifest.toolchain)}
    return serve_args, entries, variables


def test_serving_asks_for_what_was_planned_and_for_nothing_else(served):
    serve_args, entries, variables = served
    heard = []

    found = prove(entries, serve_args, variables, QUICK, heard.append)

    (column,) = found.columns
    assert found.escapes == ()
    assert found.holds
    assert column.name == CACHE
    assert column.planned["unbound"].compiles > 0
    assert column.planned["start-up"].compiles == 0
    assert column.planned["inference"].compiles == 0
    assert sum(work.hits for work in column.planned.values()) > 5
    assert found.workloads > 50
    assert (found.modules, found.uncounted) == ((), (HOPPER,))
    assert heard[0] == f"{CACHE}: starting vLLM"


def test_another_deployment_is_caught_with_what_differs(served):
    serve_args, entries, variables = served
    another = (*serve_args, "--mamba-ssm-cache-dtype", "bfloat16")

    found = prove(entries, another, variables, QUICK)

    assert not found.holds
    assert any("bfloat16" in escape.words for escape in found.escapes)


def test_arguments_that_vllm_refuses_end_it_with_its_reason(served):
    from prewarm.core.errors import InputError

    _, entries, variables = served
    with pytest.raises(InputError, match="--no-such-argument"):
        prove(entries, ("model", "--no-such-argument"), variables, QUICK)
