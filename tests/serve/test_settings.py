"""What the environment asks of the plugin."""

from pathlib import Path

import pytest

from prewarm.core.cache import CACHE_MANIFEST, ENTRIES
from prewarm.serve.settings import Settings, read_settings


@pytest.fixture
def installed(tmp_path):
    """Return a directory as `prewarm install --into` leaves it."""
    version = tmp_path / "cache" / "versions" / ("0" * 16)
    (version / ENTRIES).mkdir(parents=True)
    (version / CACHE_MANIFEST).parent.mkdir()
    (version / CACHE_MANIFEST).write_text("{}")
    (tmp_path / "cache" / "triton").symlink_to(f"versions/{version.name}/{ENTRIES}")
    return tmp_path / "cache"


def settings(**environment) -> Settings | None:
    return read_settings({name: str(value) for name, value in environment.items()})


def test_an_environment_that_asks_for_nothing_gets_nothing():
    assert settings() is None
    assert settings(PREWARM="", PREWARM_CACHE="", PREWARM_ON_MISS="error") is None


def test_a_triton_cache_that_prewarm_did_not_install_asks_for_nothing(tmp_path):
    assert settings(TRITON_CACHE_DIR=tmp_path) is None
    assert settings(TRITON_CACHE_DIR=tmp_path / "nowhere") is None


def test_an_installed_cache_that_triton_is_pointed_at_is_enough(installed):
    assert settings(TRITON_CACHE_DIR=installed / "triton") == Settings(entries=installed / "triton")


def test_the_directory_of_the_install_is_enough_whatever_triton_is_pointed_at(installed, tmp_path):
    found = settings(PREWARM_CACHE=installed, TRITON_CACHE_DIR=tmp_path)

    assert found == Settings(entries=installed / "triton")


def test_the_cache_tree_of_a_mounted_image_is_found(installed):
    (tree,) = (installed / "versions").iterdir()

    assert settings(PREWARM_CACHE=tree) == Settings(entries=tree / ENTRIES)
    assert settings(TRITON_CACHE_DIR=tree / ENTRIES) == Settings(entries=tree / ENTRIES)


def test_a_process_started_from_here_finds_the_same_cache(installed, tmp_path):
    here = settings(TRITON_CACHE_DIR=installed / "triton")
    assert here is not None
    elsewhere = settings(**here.exported(), TRITON_CACHE_DIR=tmp_path / "vllm")

    assert elsewhere == here


def test_a_relative_directory_means_the_same_after_a_change_of_directory(installed, monkeypatch):
    monkeypatch.chdir(installed.parent)

    found = settings(PREWARM_CACHE="cache", PREWARM_OVERLAY="over", PREWARM_RECORD="record")

    assert found == Settings(
        entries=installed / "triton",
        overlay=installed.parent / "over",
        record=installed.parent / "record",
    )


def test_prewarm_0_turns_everything_off(installed):
    everything = {"PREWARM_CACHE": installed, "PREWARM_RECORD": "record"}

    assert settings(PREWARM="0", **everything) is None
    assert settings(PREWARM="0", TRITON_CACHE_DIR=installed / "triton") is None


@pytest.mark.parametrize("asked", [{"PREWARM": "1"}, {"PREWARM_RECORD": "/record"}])
def test_launches_are_counted_without_a_cache_where_that_is_asked_for(asked):
    found = settings(**asked)

    assert found is not None
    assert (found.entries, found.exported()) == (None, {})


@pytest.mark.parametrize("on_miss", ["warn", "error", "off"])
def test_what_a_miss_does_is_chosen(on_miss):
    found = settings(PREWARM="1", PREWARM_ON_MISS=on_miss)

    assert found is not None
    assert (found.on_miss, found.problems) == (on_miss, ())


def test_values_that_make_no_sense_are_told_and_ignored(tmp_path):
    found = settings(PREWARM="yes", PREWARM_CACHE=tmp_path, PREWARM_ON_MISS="die")

    assert found == Settings(
        problems=(
            "PREWARM=yes is none of 0, 1: it is ignored",
            (
                f"PREWARM_CACHE={tmp_path} holds no installed cache: prewarm install SOURCE --into"
                f" {tmp_path}; launches are only counted"
            ),
            "PREWARM_ON_MISS=die is none of warn, error, off: it is ignored",
        )
    )


def test_a_directory_that_may_not_be_looked_into_is_no_cache():
    found = settings(PREWARM_CACHE=Path("/proc/1/root/nowhere"))

    assert found is not None
    assert found.entries is None
