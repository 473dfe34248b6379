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
