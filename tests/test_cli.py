"""argv in; stdout, stderr and an exit code out."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import click
import msgspec
import pytest

import prewarm.ship.verify
from prewarm.cli import ServeVerb, cli, main
from prewarm.core import errors
from prewarm.core.digest import digest_of
from prewarm.core.errors import PrewarmError
from prewarm.core.manifest_yaml import render_manifest

COMMON = {"--json", "--quiet", "--verbose", "--debug", "--help"}
NOT_RAISED = {0, 1, 70, 130, 141}


def kinds_of_errors():
    found = [value for value in vars(errors).values() if isinstance(value, type)]
    return [each for each in found if issubclass(each, PrewarmError) and each is not PrewarmError]


def sections(document):
    """Return heading to text of the second-level sections of a document."""
    parts = re.split(r"^## (.+)$", document, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.fixture
def reference(root):
    return sections((root / "docs" / "cli.md").read_text("utf-8"))


@pytest.fixture
def raising(monkeypatch):
    """Let `verify` raise what a test gives."""

    def raise_(error):
        def verify_directory(path):
            raise error

        monkeypatch.setattr(prewarm.ship.verify, "verify_directory", verify_directory)

    return raise_


def test_every_verb_and_option_is_documented(reference):
    for name, verb in cli.commands.items():
        assert name in reference
        for option in verb.params:
            if isinstance(option, click.Option) and not COMMON & set(option.opts):
                assert f"`{option.opts[-1]}`" in reference[name], f"{name} {option.opts}"
    for option in COMMON:
        assert f"`{option}`" in reference["Every verb"]


def test_every_documented_verb_exists(reference):
    assert set(reference) - {"Every verb", "Exit codes"} == set(cli.commands)


def test_every_exit_code_is_documented_once(reference):
    codes = [
        int(code) for code in re.findall(r"^\| (\d+) \|", reference["Exit codes"], re.MULTILINE)
    ]

    assert codes == sorted({kind.exit_code for kind in kinds_of_errors()} | NOT_RAISED)


def test_no_two_kinds_of_error_share_a_code():
    codes = [kind.exit_code for kind in kinds_of_errors()]

    assert len(set(codes)) == len(codes) == 9
    assert not set(codes) & NOT_RAISED


@pytest.mark.parametrize("verb", sorted(cli.commands))
def test_every_verb_has_help_and_the_common_options(verb, capsys):
    assert main([verb, "--help"]) == 0

    said = capsys.readouterr().out
    assert said.startswith(f"Usage: prewarm {verb} ")
    assert all(option in said for option in COMMON)
    assert ("-- MODEL [SERVE ARGS]" in said) == isinstance(cli.commands[verb], ServeVerb)


def test_the_version_is_the_packages(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"prewarm {prewarm.__version__}\n"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["frobnicate"], "No such command 'frobnicate'."),
        (["build", "--", "m"], "Missing option '--target'."),
        (["plan", "--target", "b200", "-j", "2", "--", "m"], "No such option '-j'."),
        (["plan", "--target", "b200", "m"], "put the model and the other arguments of vllm serve"),
        (["plan", "--target", "b200", "--"], "put the model and the other arguments of vllm serve"),
        (["build", "--target", "b20", "--", "m"], "unknown target 'b20'"),
        (["compile", "m.yaml", "--cache-dir", "d", "-j", "0"], "Invalid value for '-j'"),
        (["install", "x"], "Missing option '--into'."),
        (["show"], "Missing argument 'X'."),
    ],
)
def test_misuse_is_2_and_says_where_help_is(argv, message, capsys):
    assert main(argv) == 2

    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"prewarm: error: {message}")
    assert "\n  hint: " in said.err


def test_no_verb_at_all_shows_the_help(capsys):
    assert main([]) == 2
    assert capsys.readouterr().err.startswith("Usage: prewarm ")


@pytest.mark.parametrize(
    "typed",
    [
        ["m", "-dp", "8", "--json", "--", "-h"],
        ["vllm", "serve", "m", "-dp", "8", "--json", "--", "-h"],
    ],
)
def test_what_follows_the_dashes_is_passed_on_untouched(typed, monkeypatch, capsys):
    given = []
    verbs = pytest.importorskip("prewarm.verbs")

    def trace(out, serve_args, **options):
        given.append((serve_args, out.as_json, options["target"].name, options["closure"]))
        raise errors.UnsupportedError("enough")

    monkeypatch.setattr(verbs, "trace", trace)

    assert main(["plan", "--target", "b200", "--closure", "3", "--", *typed]) == 3
    assert given == [(("m", "-dp", "8", "--json", "--", "-h"), False, "b200", 3)]


def test_build_refuses_a_foreign_output_before_any_work(tmp_path, capsys):
    (tmp_path / "mine").write_text("precious")

    code = main(["build", "--target", "b200", "-o", str(tmp_path), "--", "no/such-model"])

    assert code == 2
    assert capsys.readouterr().err.splitlines() == [
        f"prewarm: error: {tmp_path} is neither empty nor an image layout",
        "  hint: choose another directory with -o, or remove that one",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize("kind", kinds_of_errors(), ids=lambda kind: kind.__name__)
def test_each_error_has_its_exit_code_and_its_hint(kind, raising, capsys):
    raising(kind("something\nwith [markup] is wrong", "prewarm mend --it"))

    assert main(["verify", "x"]) == kind.exit_code
    assert capsys.readouterr() == (
        "",
        "prewarm: error: something\nwith [markup] is wrong\n  hint: prewarm mend --it\n",
    )


def test_an_error_without_a_hint_is_one_line(raising, capsys):
    raising(errors.HostError("no space"))

    assert main(["verify", "x"]) == 4
    assert capsys.readouterr().err == "prewarm: error: no space\n"


@pytest.mark.parametrize("argv", [["verify", "x", "--json"], ["--json", "verify", "x"]])
def test_an_error_is_json_when_asked_for(argv, raising, capsys):
    raising(errors.TryAgainError("net", "again"))

    assert main(argv) == 75
    said = capsys.readouterr()
    assert said.out == ""
    assert json.loads(said.err) == {"error": "net", "hint": "again", "exit_code": 75}


def test_misuse_is_json_when_asked_for(capsys):
    assert main(["verify", "--json"]) == 2
    assert json.loads(capsys.readouterr().err)["error"] == "Missing argument 'SOURCE'."


def test_a_traceback_only_with_debug(raising, capsys):
    raising(errors.InputError("wrong"))

    assert main(["verify", "x"]) == 2
    assert "Traceback" not in capsys.readouterr().err
    assert main(["verify", "x", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_what_nobody_foresaw_is_a_bug_in_one_line(raising, capsys):
    raising(KeyError("secret"))

    assert main(["verify", "x"]) == 70
    first, hint = capsys.readouterr().err.splitlines()
    assert re.fullmatch(
        r"prewarm: error: a bug in prewarm: KeyError: 'secret' \(test_cli\.py:\d+\)", first
    )
    assert hint.startswith("  hint: run the same command with --debug")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), click.Abort()])
def test_an_interrupt_is_130(error, raising, capsys):
    raising(error)

    assert main(["verify", "x"]) == 130
    assert capsys.readouterr() == ("", "prewarm: error: interrupted\n")


def run(*argv, **options):
    environment = {**os.environ, **options.pop("env", {})}
    return subprocess.run(
        [sys.executable, "-m", "prewarm", *argv],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        **options,
    )


def test_stdout_closed_before_the_first_line_is_141():
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as stdout:
        done = subprocess.run(
            [sys.executable, "-m", "prewarm", "show", "targets"],
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )

    assert (done.returncode, done.stderr) == (141, "")


def test_no_color_codes_where_nobody_sees_them(tmp_path):
    done = run("show", str(tmp_path / "nothing"))

    assert done.returncode == 2
    assert "\x1b" not in done.stderr


def test_targets_are_shown_as_a_table_and_as_json(capsys):
    assert main(["show", "targets"]) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[0].split() == [
        *("target", "GPU", "architecture", "multiprocessors", "memory", "host", "CPU")
    ]
    assert not any(line.endswith(" ") for line in table)
    assert main(["show", "targets", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert len(shown) == len(table) - 1
    assert {"name": "b200", "capability": [10, 0]}.items() <= shown[0].items()


def test_a_manifest_is_shown_and_differs_from_itself_in_nothing(manifest, tmp_path, capsys):
    path = tmp_path / "m.yaml"
    path.write_text(render_manifest(manifest), "utf-8")

    assert main(["show", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "a/model at 1111111111" in shown
    assert re.search(r"^add +1 +2 +2 +n$", shown, re.MULTILINE)
    assert main(["diff", str(path), str(path)]) == 0
    assert capsys.readouterr().out == "no differences\n"


def test_two_manifests_that_differ_exit_1(manifest, changed_manifest, tmp_path, capsys):
    old, new = tmp_path / "old.yaml", tmp_path / "new.yaml"
    old.write_text(render_manifest(manifest), "utf-8")
    new.write_text(render_manifest(changed_manifest), "utf-8")

    assert main(["diff", str(old), str(new)]) == 1
    verdict = "compile again: 0 of 2 entries; tune again: 0 of 1 tuning keys"
    assert capsys.readouterr().out == (
        f"serve arguments\n  -tp: 1 → 8\ngeometry\n  heads: 4 → 8\n\n{verdict}\n"
    )
    assert main(["diff", str(old), str(new), "--json"]) == 1
    said = json.loads(capsys.readouterr().out)
    assert [each["item"] for each in said["changes"]] == ["-tp", "heads"]
    assert said["upgrade"]["verdict"] == verdict


def test_an_upgrade_begins_with_each_kernel_and_ends_with_what_to_do(manifest, tmp_path, capsys):
    old, new = tmp_path / "old.yaml", tmp_path / "new.yaml"
    kernel = msgspec.structs.replace(manifest.kernels[0], source=digest_of(b"newer"))
    tools = msgspec.structs.replace(manifest.toolchain, vllm="0.26.0", triton_key=digest_of(b"new"))
    newer = msgspec.structs.replace(manifest, kernels=(kernel,), toolchain=tools)
    old.write_text(render_manifest(manifest), "utf-8")
    new.write_text(render_manifest(newer), "utf-8")

    assert main(["diff", str(old), str(new)]) == 1
    said = capsys.readouterr().out.splitlines()
    assert said[0].split() == ["kernel", "as", "before", "changed", "new", "gone", "why"]
    assert said[1].split() == ["add", "0", "2", "0", "0", "its", "source", "(2)"]
    assert said[3].split() == ["to", "be", "tuned", "again", "why"]
    assert said[-1] == (
        "compile again: 2 of 2 entries (Triton's key differs); tune again: 1 of 1 tuning keys"
    )


def test_an_audit_of_what_start_up_missed_exits_1(manifest, tmp_path, capsys):
    path = tmp_path / "m.yaml"
    path.write_text(render_manifest(manifest), "utf-8")

    assert main(["audit", str(path)]) == 1
    said = capsys.readouterr()
    assert re.search(r"^left to inference +2 +2$", said.out, re.MULTILINE)
    assert re.search(r"^add +1 +2 +2 +start-up never launches it +prefill$", said.out, re.MULTILINE)
    assert "one rank timing one candidate" in said.out
    assert "not audited: those of attention" in said.err
    assert main(["audit", str(path), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["vllm"], found["manifest"]) == ("0.25.1", manifest.digest)
    assert found["inference"] == {"compiles": 2, "benchmarks": 2}


def test_an_audit_of_what_start_up_covers_exits_0(manifest, tmp_path, capsys):
    (kernel,) = manifest.kernels
    covered = tuple(
        msgspec.structs.replace(each, via=("prefill", "start-up"))
        for each in kernel.specializations
    )
    kernels = (msgspec.structs.replace(kernel, specializations=covered),)
    path = tmp_path / "m.yaml"
    path.write_text(render_manifest(msgspec.structs.replace(manifest, kernels=kernels)), "utf-8")

    assert main(["audit", str(path), "-q"]) == 0
    said = capsys.readouterr()
    assert said.out.endswith("\nnothing leaks into inference\n")
    assert said.err == ""


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "nothing to audit: name a target and a deployment, or a manifest"),
        (["--target", "b200"], "nothing to audit: name a target and a deployment, or a manifest"),
        (["--", "a/model"], "nothing to audit: name a target and a deployment, or a manifest"),
        (["m.yaml", "--", "a/model"], "a manifest has its target and its serve arguments"),
        (["m.yaml", "--target", "b200"], "a manifest has its target and its serve arguments"),
    ],
)
def test_an_audit_takes_a_manifest_or_a_deployment(argv, message, capsys):
    assert main(["audit", *argv]) == 2
    assert capsys.readouterr().err.startswith(f"prewarm: error: {message}")


def test_plan_writes_checks_and_streams(manifest, changed_manifest, tmp_path, monkeypatch, capsys):
    """The verb's own part; what tracing finds is tested where tracing is."""
    plan = pytest.importorskip("prewarm.trace.plan")
    monkeypatch.setattr(plan, "plan", lambda serve_args, target, **options: manifest)
    path = tmp_path / "m.yaml"
    argv = ["plan", "--target", "b200", "-q"]

    assert main([*argv, "--", "a/model"]) == 0
    assert capsys.readouterr().out == render_manifest(manifest)
    assert main([*argv, "--check", str(path), "--", "a/model"]) == 1
    assert capsys.readouterr().out == f"{path} does not exist\n"
    assert main([*argv, "-o", str(path), "--", "a/model"]) == 0
    assert capsys.readouterr() == (f"{path}\n", "")
    assert main([*argv, "--check", str(path), "--", "a/model"]) == 0
    assert capsys.readouterr().out == ""
    path.write_text(render_manifest(changed_manifest), "utf-8")
    assert main([*argv, "--check", str(path), "--", "a/model"]) == 1
    assert "heads: 8 → 4" in capsys.readouterr().out
    assert path.read_text("utf-8") == render_manifest(changed_manifest)
