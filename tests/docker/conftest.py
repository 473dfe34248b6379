"""The shipped manifests: as they are written, and as Kustomize renders them."""

from __future__ import annotations

import shutil
import subprocess

import pytest
import yaml


@pytest.fixture(scope="session")
def manifests(root):
    """The directory of the Kubernetes manifests."""
    return root / "docker" / "kubernetes"


@pytest.fixture(scope="session")
def rendered(manifests):
    """The function from the name of an overlay to what `kubectl kustomize` makes of it."""
    if shutil.which("kubectl") is None:
        pytest.skip("this machine has no kubectl")

    def render(name):
        done = subprocess.run(
            ["kubectl", "kustomize", manifests / name], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return list(yaml.safe_load_all(done.stdout))

    return render
