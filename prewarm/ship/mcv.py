"""The index and the labels by which Red Hat's MCV and KServe read a Triton cache image.

MCV: https://github.com/redhat-et/GKM/blob/main/mcv/docs/spec-compat.md
What was checked against which version stands in docs/cache-image.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prewarm.core.cache import ENTRIES
from prewarm.core.digest import canonical_json

TRITON = "cache.triton.image"
KSERVE = "io.kserve.km"


def index_entry(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return what MCV's index says of the kernel with this Triton metadata."""
    target = metadata["target"]
    entry = {
        "hash": metadata["hash"],
        "backend": target["backend"],
        "arch": str(target["arch"]),
        "warp_size": target["warp_size"],
        "ptx_version": metadata.get("ptx_version"),
        "num_stages": metadata.get("num_stages"),
        "num_warps": metadata.get("num_warps"),
    }
    return {name: value for name, value in entry.items() if value is not None}


def index(entries: Sequence[Mapping[str, Any]]) -> bytes:
    """Return MCV's `manifest.json` for these entries."""
    return canonical_json({"triton": sorted(entries, key=lambda e: str(e["hash"]))})


def labels(arch: int, entries: int, files: Mapping[str, bytes]) -> dict[str, str]:
    """Return what MCV checks before and after it extracts `files`, as they are shipped."""
    targets = [{"backend": "cuda", "arch": str(arch), "warp_size": 32}]
    size = sum(len(data) for path, data in files.items() if path.startswith(ENTRIES + "/"))
    return {
        f"{TRITON}/entry-count": str(entries),
        f"{TRITON}/cache-size-bytes": str(size),
        f"{TRITON}/summary": canonical_json({"targets": targets}).decode(),
    }


def mount_labels(mount_path: str | None) -> dict[str, str]:
    """Return what KServe's kernel cache manager needs to mount an image made for `mount_path`.

    An image made for no path must be installed, so it does not say where to mount it.
    """
    # Of the payload, `io.triton.cache`, all is mounted: trees beside that are none of ours.
    found = {
        f"{KSERVE}/framework": "vllm",
        f"{KSERVE}/cache-type": "triton",
        f"{KSERVE}/cache-mount-subpath": ".",
    }
    if mount_path is None:
        return found
    return found | {f"{KSERVE}/cache-root-env": f"TRITON_CACHE_DIR={mount_path}/{ENTRIES}"}
