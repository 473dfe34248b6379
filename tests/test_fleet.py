"""Which options of `build` belong to a fleet, and which to one deployment."""

from __future__ import annotations

import pytest

from prewarm.cli import main


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--shard", "1/2", "--target", "b200", "--", "m"], "--shard belongs to a fleet"),
        (["--plans", "p", "--target", "b200", "--", "m"], "--plans belongs to a fleet"),
        (["--plans-only", "--target", "b200", "--", "m"], "--plans-only belongs to a fleet"),
        (["--target", "b200"], "put the model and the other arguments of vllm serve after --"),
        (["--matrix", "m.yaml"], "a fleet needs a directory: -o OUT"),
        (["--matrix", "m.yaml", "-o", "o", "--", "m"], "the matrix names the deployments"),
        (["--matrix", "m.yaml", "-o", "o", "--target", "b200"], "with --matrix, --target has no"),
        (["--matrix", "m.yaml", "-o", "o", "--tunings", "t"], "with --matrix, --tunings has no"),
        (["--matrix", "m.yaml", "-o", "o", "--cache-dir", "c"], "with --matrix, --cache-dir has"),
        (["--matrix", "m.yaml", "-o", "o", "--flashinfer", "f"], "with --matrix, --flashinfer has"),
        (
            ["--matrix", "m.yaml", "-o", "o", "--shard", "1/2", "--mount-path", "/opt"],
            "--mount-path belongs to the images",
        ),
        (["--matrix", "m.yaml", "-o", "o", "--shard", "3/2"], "'3/2' is not a part"),
        (["--matrix", "nowhere.yaml", "-o", "o"], "cannot read the matrix nowhere.yaml"),
    ],
)
def test_options_that_do_not_go_together_are_refused(argv, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    assert main(["build", *argv]) == 2
    assert f"prewarm: error: {message}" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "name the SHARDs, or the --run that those in DIR are of"),
        (["s", "--push", "r"], "--push needs the tag of the index: --index TAG"),
        (["--run", "r", "--index", "i"], "--run, --shard and --index go together"),
        (["--shard", "1/2", "--index", "i"], "--run, --shard and --index go together"),
        (["--run", "r", "--shard", "1/2"], "--run, --shard and --index go together"),
        (["s", "--run", "r", "--shard", "1/2", "--index", "i"], "name the SHARDs, or the --run"),
        (["--run", "a/b", "--shard", "1/2", "--index", "i"], "'a/b' cannot name a run"),
        (["--run", "r", "--shard", "1/2", "--index", "i"], "the shard o/shard-1-of-2 is not fin"),
        (["s", "--index", "i", "--push", "UPPER"], "'UPPER:i' is not an image reference"),
        (["s", "--index", "a b"], "'a b' is not a tag"),
    ],
)
def test_options_of_gather_that_do_not_go_together_are_refused(
    argv, message, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)

    assert main(["gather", *argv, "-o", "o"]) == 2
    assert f"prewarm: error: {message}" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
