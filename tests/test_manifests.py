"""The committed manifests, and plans of a whole matrix."""

from __future__ import annotations

from pathlib import Path

import pytest

from prewarm.cli import main

MATRIX = """\
schema: prewarm/matrix/v1
products:
- models: [{models}/Qwen3.5-0.8B]
  targets: [b200, h200]
  serve_args: --gdn-prefill-backend triton
"""


def test_the_committed_manifests_are_what_is_planned_today(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(root)
    matrix, kept = "manifests/popular.yaml", "manifests/popular"

    code = main(["plan", "-q", "--matrix", matrix, "--closure", "20", "--check", kept])

    assert (capsys.readouterr().out, code) == ("", 0)


def test_a_drift_is_told_by_deployment_and_kernel(
    tmp_path: Path, model_configs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    matrix, kept = tmp_path / "matrix.yaml", tmp_path / "kept"
    matrix.write_text(MATRIX.format(models=model_configs), "utf-8")
    asked = ["plan", "--matrix", str(matrix), "--closure", "0"]
    assert main([*asked, "-o", str(kept)]) == 0
    first, second = sorted(kept.iterdir())
    assert (first.name, second.name) == ("qwen3.5-0.8b-b200.yaml", "qwen3.5-0.8b-h200.yaml")
    second.unlink()
    other = ["plan", "--target", "b200", "--closure", "0", "-o", str(first), "--"]
    serve = [str(model_configs / "Qwen3.5-0.8B"), "--gdn-prefill-backend", "triton"]
    assert main([*other, *serve, "--enforce-eager"]) == 0
    (kept / "of-another.yaml").write_text("", "utf-8")
    capsys.readouterr()

    assert main([*asked, "--check", str(kept)]) == 1
    told = capsys.readouterr()
    assert f"{first} would change" in told.err
    assert "_causal_conv1d_update_kernel" in told.out
    assert f"{second} does not exist" in told.out
    assert f"{kept / 'of-another.yaml'} is of no deployment that {matrix} names" in told.err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--matrix", "m.yaml"], "the manifests of a matrix need a directory: -o DIR"),
        (["--matrix", "m.yaml", "-o", "d", "--", "m"], "the matrix names the deployments"),
        (["--matrix", "m.yaml", "--target", "b200"], "with --matrix, --target has no place"),
        (["--matrix", "nowhere.yaml", "-o", "d"], "cannot read the matrix nowhere.yaml"),
        (["--", "m"], "Missing option '--target'"),
        (["--target", "b200"], "put the model and the other arguments of vllm serve after --"),
    ],
)
def test_options_that_do_not_go_together_are_refused(argv, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    assert main(["plan", *argv]) == 2
    assert f"prewarm: error: {message}" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
