"""What an install that fails means for the pod that waits for it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import msgspec
import pytest

from prewarm.cli import main
from prewarm.core.errors import (
    HostError,
    InputError,
    IntegrityError,
    MismatchError,
    RegistryError,
    TryAgainError,
)
from prewarm.ship.install import install, serve_nothing
from prewarm.ship.pack import pack
from prewarm.ship.policy import cause_of, leave_words, policy_of


@pytest.fixture
def into(tmp_path):
    return tmp_path / "into"


@pytest.fixture
def log(tmp_path):
    return tmp_path / "termination-log"


@pytest.fixture
def misfit(cache, tmp_path):
    """A sound image that was built on another CPU."""
    here = cache.compiled.toolchain.machine
    other = {"x86_64": "aarch64", "aarch64": "x86_64"}[here]
    changed = cache.with_index(
        toolchain=msgspec.structs.replace(cache.compiled.toolchain, machine=other)
    )
    pack(changed.manifest, changed.directory, tmp_path / "misfit")
    return tmp_path / "misfit"


@pytest.fixture
def unsound(packed):
    """An image with one byte changed."""
    out, _ = packed
    layer = max((out / "blobs" / "sha256").iterdir(), key=lambda path: path.stat().st_size)
    layer.write_bytes(layer.read_bytes()[:-1] + b"x")
    return out


class HoldsNothing(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_error(404)

    def log_message(self, *_):
        pass


@pytest.fixture
def gone():
    """The reference of an image in a registry that has none."""
    with ThreadingHTTPServer(("127.0.0.1", 0), HoldsNothing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}/caches:x"
        server.shutdown()


@pytest.fixture
def run(into, log, capsys):
    """The function that runs `install`; it returns the code, both streams and the last words."""

    def run(source, *options):
        argv = ["install", source, "--into", into, "--termination-log", log, *options]
        code = main([str(each) for each in argv])
        out, err = capsys.readouterr()
        return code, out, err, log.read_text() if log.exists() else ""

    return run


def test_a_failure_is_fatal_unless_somebody_says_otherwise(misfit, unsound, gone, run, into):
    assert run(misfit)[0] == 8
    assert run(unsound)[0] == 7
    code, out, err, words = run(gone, "--plain-http")
    assert (code, out) == (9, "")
    assert err.startswith("prewarm: error: ")
    assert words.startswith("prewarm: not installed: cannot read ")
    assert not into.exists()


@pytest.mark.parametrize(
    ("kind", "said"),
    [("misfit", "P207 "), ("unsound", "P103 altered file: "), ("gone", "cannot read the manifest")],
)
def test_in_an_init_container_none_of_them_keeps_a_pod_from_serving(kind, said, run, into, request):
    source = request.getfixturevalue(kind)
    code, out, err, words = run(source, "--init-container", "--plain-http")

    assert (code, out) == (0, f"{into}/triton\n")
    assert err.startswith(f"prewarm: warning: starting cold, nothing installed: {said}")
    assert words.startswith(f"prewarm: starting cold, nothing installed: {said}")
    assert [path for path in into.rglob("*") if path.is_file()] == [into / ".prewarm.lock"]


@pytest.mark.parametrize(
    ("kind", "option", "code"),
    [("misfit", "mismatch", 8), ("unsound", "unsound", 7), ("gone", "unavailable", 9)],
)
def test_each_of_them_can_be_made_fatal_by_itself(kind, option, code, run, request):
    source = request.getfixturevalue(kind)
    init = ("--init-container", "--plain-http")
    others = {"mismatch", "unsound", "unavailable"} - {option}

    found, out, _, words = run(source, *init, f"--on-{option}", "fail")
    assert (found, out) == (code, "")
    assert words.startswith("prewarm: not installed: ")
    assert run(source, *init, *(f"--on-{each}=fail" for each in others))[0] == 0


def test_each_of_them_can_be_a_warning_outside_an_init_container(unsound, run, into):
    assert run(unsound, "--on-mismatch", "warn")[0] == 7
    assert run(unsound, "--on-unsound", "warn")[:2] == (0, f"{into}/triton\n")
    assert not into.exists()


def test_what_was_asked_for_wrongly_is_fatal_in_an_init_container_too(run, into, tmp_path):
    code, _, _, words = run(tmp_path / "nowhere", "--init-container")

    assert code == 2
    assert "neither an image layout nor a mounted cache image" in words
    assert not into.exists()


def test_a_sound_image_is_installed_as_ever(packed, run, into):
    code, out, err, words = run(packed[0], "--init-container")

    assert (code, out, words) == (0, f"{into}/triton\n", "")
    assert err.startswith("installed: 4 launches")


def test_json_says_why_nothing_was_installed(unsound, run, into):
    code, out, err, _ = run(unsound, "--init-container", "--json")
    found = json.loads(out)["installed"]

    assert (code, found["state"], found["directory"]) == (0, "unsound", f"{into}/triton")
    assert found["problem"].startswith("P103 ")
    assert json.loads(err)["warning"].startswith("starting cold, nothing installed: P103 ")


def test_an_unsound_image_leaves_the_sound_cache_that_was_there(
    cache, run, into, tmp_path, snapshot
):
    pack(cache.manifest, cache.directory, tmp_path / "first")
    install(tmp_path / "first", into)
    before = snapshot(into)
    layer = max((tmp_path / "first/blobs/sha256").iterdir(), key=lambda path: path.stat().st_size)
    layer.write_bytes(b"other")

    assert run(tmp_path / "first", "--init-container")[0] == 0
    assert snapshot(into) == before


def test_after_a_cold_start_with_triton_the_next_install_succeeds(
    packed, gone, into, run, triton_lookup
):
    """An emptyDir outlives its init container: the next one finds what Triton compiled."""
    assert run(gone, "--init-container", "--plain-http")[0] == 0
    assert [entry["hit"] for entry in triton_lookup(into / "triton")] == [False] * 4

    assert run(packed[0], "--init-container")[0] == 0
    assert [entry["hit"] for entry in triton_lookup(into / "triton")] == [True] * 4
    assert "0" * 16 not in os.listdir(into / "versions")


def test_to_serve_nothing_needs_a_directory_of_our_own(into):
    into.mkdir()
    (into / "letters").write_text("dear")
    with pytest.raises(InputError):
        serve_nothing(into)

    assert os.listdir(into) == ["letters"]


def test_last_words_are_cut_between_characters(log):
    leave_words(log, "é" * 5000)

    assert log.read_bytes() == ("é" * 2048).encode()


def test_last_words_replace_those_of_an_earlier_try(log):
    leave_words(log, "a long story")
    leave_words(log, "short")

    assert log.read_text() == "short"


def test_a_log_that_cannot_be_written_changes_nothing(unsound, into, tmp_path, root):
    argv = ["install", unsound, "--into", into, "--init-container", "--termination-log", tmp_path]
    done = subprocess.run(
        [sys.executable, "-m", "prewarm", *argv], capture_output=True, text=True, check=False
    )

    assert done.returncode == 0
    assert done.stderr.startswith("prewarm: warning: starting cold, nothing installed: P103 ")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (MismatchError, "does not fit"),
        (IntegrityError, "unsound"),
        (HostError, "unavailable"),
        (RegistryError, "unavailable"),
        (TryAgainError, "unavailable"),
        (InputError, None),
    ],
)
def test_every_error_has_one_cause(error, cause):
    plain = {"on_mismatch": None, "on_unsound": None, "on_unavailable": None}

    assert cause_of(error("x")) == cause
    assert policy_of(init_container=True, **plain).starts_cold(cause) is (cause is not None)
    assert not policy_of(init_container=False, **plain).starts_cold(cause)
