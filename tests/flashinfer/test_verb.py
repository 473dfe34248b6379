"""What `compile` says and does of FlashInfer."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from prewarm.core.flashinfer import BLACKWELL, HOPPER, PrefillCall
from prewarm.core.fleet import Planned, library_of
from prewarm.core.manifest import Elsewhere, Manifest
from prewarm.flashinfer.hopper import OBJECTS
from prewarm.output import Output
from prewarm.verbs import build_flashinfer

Asked = Callable[..., Elsewhere]


@pytest.fixture
def hopper(manifest: Manifest, asked: Asked, call: PrefillCall) -> Manifest:
    """Return a manifest of a deployment on H100 that prefills with FlashInfer."""
    deployment = msgspec.structs.replace(manifest.deployment, target="h100")
    return msgspec.structs.replace(
        manifest, deployment=deployment, elsewhere=(asked(HOPPER, call),)
    )


def test_without_a_directory_it_says_what_is_left_out_what_it_takes_and_the_option(
    hopper: Manifest, capsys: pytest.CaptureFixture[str]
) -> None:
    assert build_flashinfer(Output(), hopper, None, None) == {}

    said = capsys.readouterr().err
    assert f"left out: 1 of {HOPPER}" in said
    assert "about 2 core-minutes" in said
    assert "--flashinfer DIR" in said


def test_a_build_tells_what_is_to_be_compiled_and_each_part(
    hopper: Manifest, built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(built / OBJECTS, tmp_path / "out" / OBJECTS)
    out = Output()
    out.verbosity = 1

    counts = build_flashinfer(out, hopper, tmp_path / "out", 1)

    assert counts == {"flashinfer_compiled": 0, "flashinfer_kept": 3}
    said = capsys.readouterr().err
    assert f"building {HOPPER} with nvcc " in said
    assert "1 at a time: 0 of 3 parts are to be compiled" in said
    assert "kept bf16_g1b1a1i1c0" in said


def test_a_deployment_that_prefills_with_triton_has_nothing_to_build(
    manifest: Manifest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert build_flashinfer(Output(), manifest, tmp_path / "out", None) == {}
    assert "prefills without it" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_blackwell_is_left_out_with_its_own_forecast(
    manifest: Manifest, asked: Asked, call: PrefillCall, capsys: pytest.CaptureFixture[str]
) -> None:
    planned = msgspec.structs.replace(manifest, elsewhere=(asked(BLACKWELL, call),))

    build_flashinfer(Output(), planned, None, None)

    assert "about 15 s" in capsys.readouterr().err


def test_what_no_image_can_hold_is_not_built_to_be_packed(
    manifest: Manifest,
    asked: Asked,
    call: PrefillCall,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    planned = msgspec.structs.replace(manifest, elsewhere=(asked(BLACKWELL, call),))

    assert build_flashinfer(Output(), planned, tmp_path / "out", None, to_pack=True) == {}

    assert "reads from no image; --gdn-prefill-backend triton" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_the_image_has_already_is_not_built_to_be_packed(
    hopper: Manifest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (module,) = hopper.elsewhere
    there = msgspec.structs.replace(module, present="flashinfer-jit-cache 0.6.13", spared=True)
    planned = msgspec.structs.replace(hopper, elsewhere=(there,))

    assert build_flashinfer(Output(), planned, tmp_path / "out", None, to_pack=True) == {}
    assert library_of(Planned(name="a", manifest=planned, flashinfer=True)) is None
    assert library_of(Planned(name="a", manifest=hopper, flashinfer=True)) is not None

    assert f"left out: 1 of {HOPPER}, which flashinfer-jit-cache 0.6.13 brings\n" in (
        capsys.readouterr().err
    )
    assert not (tmp_path / "out").exists()
