"""The one real instance that these tests share."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from prewarm.core.files import locked
from prewarm.core.flashinfer import HOPPER, PrefillCall, instances_of
from prewarm.core.manifest import Elsewhere
from prewarm.device.shared_library import user_cache
from prewarm.flashinfer.build import build_module

Asked = Callable[..., Elsewhere]


@pytest.fixture(scope="session")
def asked() -> Asked:
    """Return a function to what a manifest says of a deployment that calls a module so."""

    def make(module: str, *calls: PrefillCall) -> Elsewhere:
        words = dict.fromkeys(("reason", "needs", "present", "cold"), "")
        instances = instances_of(module, calls)
        return Elsewhere(
            name=module, backend="FlashInfer", instances=instances, calls=calls, **words
        )

    return make


@pytest.fixture(scope="session")
def call() -> PrefillCall:
    """Return how vLLM calls FlashInfer for Qwen3.5-397B-A17B on one GPU of eight."""
    return PrefillCall(
        dtype="bf16",
        state_dtype="fp32",
        query_heads=2,
        value_heads=8,
        head_dim=128,
        gate=True,
        beta=True,
        initial_state=True,
        final_state=True,
        checkpoints=False,
    )


@pytest.fixture(scope="session")
def built(asked: Asked, call: PrefillCall, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of a Hopper library with the instance of `call`.

    Building it takes two minutes of one core and 6.6 GiB of memory, so it is kept in the user's
    cache, where it is found as long as nothing of which it is made has changed. Tests have a copy:
    another test process that builds takes the record away until it is done.
    """
    copy = tmp_path_factory.mktemp("flashinfer") / "built"
    store = user_cache() / "flashinfer-tests"
    store.mkdir(parents=True, exist_ok=True)
    with locked(store / "tests.lock"):
        for _ in build_module(asked(HOPPER, call), "h100", store):
            pass
        shutil.copytree(store, copy)
    return copy
