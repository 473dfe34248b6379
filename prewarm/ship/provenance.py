"""Provenance: what an image was made of, and how. SLSA's predicate, v1.

It says what the image itself can show, so that anybody gets the same bytes from the same image.
What it holds is described in docs/registry.md.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from prewarm.core.manifest import Model
from prewarm.core.toolchain import Toolchain
from prewarm.ship.described import NO_TIME, URI, Described, ptxas_package, python_package

BUILD_TYPE = f"{URI}/cache-image/v1"
BUILDER = f"{URI}/prewarm"


def provenance(image: Described) -> dict[str, Any]:
    """Return the predicate of `image`."""
    manifest = image.manifest
    return {
        "buildDefinition": {
            "buildType": BUILD_TYPE,
            "externalParameters": _asked(image),
            "internalParameters": {
                "manifest": manifest.manifest,
                "kernels": manifest.sources,
                "keyEnvironment": manifest.toolchain.key_environment,
                "pythonAbi": manifest.toolchain.python_abi,
                "machine": manifest.toolchain.machine,
                "libc": manifest.toolchain.libc,
            },
            "resolvedDependencies": [
                _model(manifest.deployment.model),
                *_packages(manifest.toolchain),
            ],
        },
        "runDetails": {
            "builder": _builder(image.made_by),
            "metadata": {} if image.created == NO_TIME else {"finishedOn": image.created},
            "byproducts": [
                {"name": "prewarm/manifest.json", "digest": _digest_set(image.identity)}
            ],
        },
    }


def _asked(image: Described) -> dict[str, Any]:
    manifest = image.manifest
    asked: dict[str, Any] = {
        "serveArgs": manifest.deployment.serve_args,
        "target": manifest.deployment.target,
    }
    if manifest.selection is not None:
        asked["tunings"] = manifest.selection.tunings
        asked["tunedOn"] = manifest.selection.gpu
        asked["allCandidates"] = manifest.selection.all_candidates
    if image.mount_path is not None:
        asked["mountPath"] = image.mount_path
    return asked


def _builder(version: str | None) -> dict[str, Any]:
    if version is None:
        return {"id": BUILDER}
    return {"id": f"{BUILDER}@{version}", "version": {"prewarm": version}}


def _model(model: Model) -> dict[str, Any]:
    found = {
        "name": model.name,
        "digest": _digest_set(model.config),
        "annotations": {"file": "config.json"},
    }
    if model.revision is None:
        return found
    name, revision = quote(model.name, safe="/"), quote(model.revision, safe="")
    return found | {"uri": f"pkg:huggingface/{name}@{revision}"}


def _packages(tools: Toolchain) -> list[dict[str, Any]]:
    versions = {"vllm": tools.vllm, "torch": tools.torch, "triton": tools.triton}
    found: dict[str, dict[str, Any]] = {
        name: {"name": name, "uri": python_package(name, version)}
        for name, version in versions.items()
    }
    found["torch"]["annotations"] = {"cuda": tools.cuda}
    found["triton"]["annotations"] = {"tritonKey": tools.triton_key}
    ptxas = {
        "name": "ptxas",
        "uri": ptxas_package(tools.ptxas.version),
        "annotations": {"versionText": tools.ptxas.text, "chosenBy": tools.ptxas.chosen_by},
    }
    return [*found.values(), ptxas]


def _digest_set(digest: str) -> dict[str, str]:
    algorithm, _, value = digest.partition(":")
    return {algorithm: value}
