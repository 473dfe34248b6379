"""MODEL -> config.json, against a server on 127.0.0.1 that answers as the hub does.

The real client runs in a process of its own, because it reads HF_ENDPOINT and HF_HOME when it is
imported.
"""

from __future__ import annotations

import http.server
import json
import os
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from prewarm.core.digest import digest_of
from prewarm.core.errors import InputError
from prewarm.trace.model_source import resolve_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CONFIG = b'{"model_type": "qwen3_5", "architectures": ["Qwen3_5ForConditionalGeneration"]}'
FILES = {
    "config.json": CONFIG,
    "preprocessor_config.json": b'{"patch_size": 16}',
    "tokenizer.json": b'{"version": "1.0"}',
    "model.safetensors": b"weights",
    "model.safetensors.index.json": b'{"weight_map": {}}',
}

CLIENT = """
import json, sys
from prewarm.core.errors import PrewarmError
from prewarm.trace.model_source import resolve_model
try:
    source = resolve_model(sys.argv[1], sys.argv[2] or None)
except PrewarmError as error:
    print(json.dumps([type(error).__name__, error.message, error.hint]))
else:
    print(json.dumps([source.name, source.directory, source.revision, source.config]))
"""


@dataclass
class Hub:
    """A hub of one model, `org/model`, that refuses what it is told to."""

    files: dict[str, bytes] = field(default_factory=lambda: dict(FILES))
    refuse_api: tuple[int, str | None] | None = None
    refuse_files: tuple[int, str | None] | None = None
    cut: bool = False
    endpoint: str = ""
    served: list[str] = field(default_factory=list)


class Answer(http.server.BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, *, body):
        hub: Hub = self.server.hub
        path = self.path.partition("?")[0]
        if hub.cut:
            self.close_connection = True
            self.connection.close()
        elif path.startswith("/api/"):
            self.api(hub, path)
        else:
            self.file(hub, path, body)

    def api(self, hub, path):
        if hub.refuse_api:
            self.send(*hub.refuse_api)
        elif not path.startswith("/api/models/org/model/"):
            self.send(404, "RepoNotFound")
        elif path.endswith((f"/revision/{COMMIT}", "/revision/main")):
            siblings = [{"rfilename": name} for name in hub.files]
            self.send_json({"id": "org/model", "sha": COMMIT, "siblings": siblings})
        elif path.endswith(f"/tree/{COMMIT}"):
            tree = [
                {"type": "file", "path": name, "size": len(data), "oid": "0" * 40}
                for name, data in hub.files.items()
            ]
            self.send_json(tree)
        else:
            self.send(404, "RevisionNotFound")

    def file(self, hub, path, body):
        name = path.removeprefix(f"/org/model/resolve/{COMMIT}/")
        if hub.refuse_files:
            self.send(*hub.refuse_files)
        elif name not in hub.files:
            self.send(404, "EntryNotFound")
        else:
            data = hub.files[name]
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("ETag", f'"{digest_of(data)[7:47]}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            if body:
                hub.served.append(name)
                self.wfile.write(data)

    def send(self, status, code):
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def send_json(self, value):
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def hub():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    server.hub = Hub(endpoint=f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield server.hub
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def ask(hub, tmp_path):
    """Return a function that resolves a model in a fresh process and returns what came of it."""

    def resolve(name="org/model", revision="", **environment):
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
        home = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "hub")}
        done = subprocess.run(
            [sys.executable, "-c", CLIENT, name, revision],
            env={**kept, **home, "NO_PROXY": "127.0.0.1", **environment},
            capture_output=True,
            text=True,
            check=True,
        )
        return json.loads(done.stdout)

    return resolve


def test_a_hub_id_is_pinned_to_its_commit_and_only_small_files_are_fetched(hub, ask):
    name, directory, revision, config = ask()

    assert (name, revision, config) == ("org/model", COMMIT, digest_of(CONFIG))
    assert (Path(directory) / "config.json").read_bytes() == CONFIG
    assert sorted(hub.served) == ["config.json", "preprocessor_config.json"]


def test_a_commit_names_the_same_files_as_the_branch(ask):
    assert ask(revision=COMMIT) == ask(revision="main")


def test_what_was_fetched_once_is_there_offline(hub, ask):
    online = ask()
    hub.cut = True

    assert ask(HF_HUB_OFFLINE="1") == online
    assert ask(HF_HUB_OFFLINE="1", revision=COMMIT) == online


def test_what_was_fetched_once_outlives_the_network(ask):
    online = ask()

    assert ask(HF_ENDPOINT="http://127.0.0.1:9") == online


def test_offline_and_never_fetched_is_an_input_error(ask):
    kind, message, hint = ask(HF_HUB_OFFLINE="1")

    assert kind == "InputError"
    assert message == "org/model is not in the hub's cache, and HF_HUB_OFFLINE is set"
    assert hint.startswith("unset HF_HUB_OFFLINE")


def test_a_missing_model_says_that_it_may_be_private(ask):
    kind, message, hint = ask("org/absent")

    assert (kind, message) == ("InputError", "the hub has no model org/absent, or it is private")
    assert hint.endswith("hf auth login")


def test_a_missing_revision_is_named(ask):
    kind, message, _ = ask(revision="v9")

    assert (kind, message) == ("InputError", "org/model has no revision v9")


@pytest.mark.parametrize("status", [401, 403])
def test_a_gated_model_is_told_from_a_missing_one(hub, ask, status):
    hub.refuse_files = (status, "GatedRepo")
    kind, message, hint = ask()

    assert kind == "InputError"
    assert message == "org/model is gated, and this machine may not read it"
    assert hint.endswith("log in on this machine: hf auth login")


def test_a_bare_403_asks_for_a_login(hub, ask):
    hub.refuse_api = (403, None)
    kind, message, hint = ask()

    assert kind == "InputError"
    assert message == "the hub does not let this machine read org/model (403)"
    assert hint.endswith("hf auth login")


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_passing_fault_says_try_again(hub, ask, status):
    hub.refuse_api = (status, None)
    kind, message, hint = ask()

    assert (kind, message) == ("TryAgainError", f"the hub answered {status} for org/model")
    assert "HF_HUB_OFFLINE=1" in hint


@pytest.mark.soak  # the client tries again for 23 seconds
def test_a_fault_between_listing_and_fetching_says_try_again(hub, ask):
    hub.refuse_files = (502, None)
    kind, message, _ = ask()

    assert (kind, message) == ("TryAgainError", "the hub answered 502 for org/model")


def test_a_cut_connection_says_try_again(hub, ask):
    hub.cut = True
    kind, message, hint = ask()

    assert kind == "TryAgainError"
    assert message.startswith("cannot reach the hub for org/model: ")
    assert "local directory" in hint


def test_no_network_says_try_again(ask):
    kind, message, _ = ask(HF_ENDPOINT="http://127.0.0.1:9")

    assert kind == "TryAgainError"
    assert message.startswith("cannot reach the hub for org/model: ")


def test_a_repository_without_config_is_an_input_error(hub, ask):
    del hub.files["config.json"]
    kind, message, _ = ask()

    assert (kind, message) == ("InputError", "org/model holds no config.json")


def test_a_config_that_is_not_json_is_named_with_line_and_column(hub, ask):
    hub.files["config.json"] = b'{"model_type":\n "qwen3_5",}'
    kind, message, _ = ask()

    assert kind == "InputError"
    assert "config.json is not valid JSON: " in message
    assert " at line 2, column " in message


def test_a_cache_that_cannot_be_written_is_the_machines_fault(ask, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_bytes(b"")
    kind, message, _ = ask(HF_HOME=str(blocked))

    assert kind == "HostError"
    assert message.startswith("cannot write the hub's cache for org/model: ")


def test_a_name_that_is_neither_is_an_input_error(ask):
    kind, message, hint = ask("org/mod el")

    assert kind == "InputError"
    assert message.startswith("'org/mod el' is neither a directory nor a hub id: ")
    assert "Qwen/" in hint


def test_a_local_directory_is_taken_as_it_is(model_configs):
    directory = model_configs / "Qwen3.5-397B-A17B-FP8"
    source = resolve_model(str(directory))

    assert source.name == "Qwen3.5-397B-A17B-FP8"
    assert source.directory == str(directory)
    assert source.revision is None
    assert source.config == digest_of((directory / "config.json").read_bytes())


def test_every_config_in_the_repository_is_readable_and_documented(model_configs):
    table = (model_configs / "SOURCES.md").read_text("utf-8")
    names = [path.parent.name for path in model_configs.glob("*/config.json")]

    assert len(names) >= 14
    for name in names:
        assert resolve_model(str(model_configs / name)).name == name
        assert f"| {name} |" in table


def test_a_missing_directory_is_not_looked_for_on_the_hub():
    with pytest.raises(InputError, match=r"there is no model directory \./absent"):
        resolve_model("./absent")


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"[]", "is not a model config: it holds no JSON object"),
        (b'{"a": 1', r"is not valid JSON: .* at line 1, column 8"),
        (b'{"a": "\xff"}', "is not valid JSON: it is not UTF-8 text"),
        (None, "holds no config.json"),
    ],
)
def test_an_unusable_local_config_is_an_input_error(tmp_path, data, problem):
    if data is not None:
        (tmp_path / "config.json").write_bytes(data)

    with pytest.raises(InputError, match=problem):
        resolve_model(str(tmp_path))
