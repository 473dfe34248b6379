"""A matrix names deployments, each once and each in full; what cannot be meant is refused."""

from __future__ import annotations

import pytest

from prewarm.core.errors import InputError
from prewarm.core.matrix_yaml import parse_matrix, read_matrix

HEAD = "schema: prewarm/matrix/v1\n"


TWICE = """
products: [{models: [a/x], targets: [b200]}]
deployments: [{name: x-b200, serve: x, target: b200}]
"""


def parse(text):
    return parse_matrix(HEAD + text, "matrix.yaml")


def test_a_product_is_every_combination_of_its_lists():
    found = parse(
        """
products:
- models: [Qwen/Qwen3.5-9B, ./models/Small/]
  tensor_parallel: [1, 8]
  targets: [h100, b200]
  serve_args: --max-model-len 4096
  variants:
    plain: ""
    triton: --gdn-prefill-backend triton
"""
    )

    assert len(found) == 16
    assert [each.name for each in found] == sorted(each.name for each in found)
    one = next(each for each in found if each.name == "qwen3.5-9b-tp8-b200-triton")
    assert one.target == "b200"
    assert one.serve_args == (
        "Qwen/Qwen3.5-9B",
        *("--tensor-parallel-size", "8", "--max-model-len", "4096"),
        *("--gdn-prefill-backend", "triton"),
    )
    small = next(each for each in found if each.name == "small-tp1-h100-plain")
    assert small.serve_args[0] == "./models/Small/"


def test_without_tensor_parallelism_and_variants_the_arguments_stay_as_they_are():
    (found,) = parse("products: [{models: [a/B], targets: [h200], serve_args: -dp 8}]")

    assert (found.name, found.serve_args) == ("b-h200", ("a/B", "-dp", "8"))


def test_a_pinned_model_is_served_at_its_revision():
    (found,) = parse(
        "products: [{models: [{model: a/b, revision: '0123'}], targets: [b200], vllm: [0.25.1]}]"
    )

    assert found.serve_args == ("a/b", "--revision", "0123")
    assert found.is_for("0.25.1+cu129")
    assert not found.is_for("0.25.10")


def test_a_deployment_by_itself_is_written_as_in_a_shell(tmp_path):
    path = tmp_path / "matrix.yaml"
    path.write_text(
        HEAD
        + """
deployments:
- name: big
  serve: >-
    a/b -dp 8
    --speculative-config '{"method": "mtp"}'
  target: b200
  tunings: [t.yaml]
  one_winner: true
"""
    )

    (found,) = read_matrix(path)

    assert found.serve_args == ("a/b", "-dp", "8", "--speculative-config", '{"method": "mtp"}')
    assert (found.tunings, found.one_winner, found.is_for("0.1")) == (("t.yaml",), True, True)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "it names no deployment"),
        ("products: [{models: [a], targets: [b20]}]", "`$.products[0].targets[0]`"),
        (
            "products: [{models: [a], targets: []}]",
            "the list is empty - at `$.products[0].targets`",
        ),
        (
            "products: [{models: [a], targets: [b200], tensor_parallel: [1, 0]}]",
            "`$.products[0].tensor_parallel[1]`",
        ),
        (
            "products: [{models: [a], targets: [b200], tensor_parallel: ['1']}]",
            "Expected `int`, got `str` - at `$.products[0].tensor_parallel[0]`",
        ),
        (
            'products: [{models: [a], targets: [b200], serve_args: "--x \'y"}]',
            "No closing quotation - at `$.products[0].serve_args`",
        ),
        (
            "products: [{models: [a], targets: [b200], vllm: [0.25]}]",
            "Expected `str`, got `float` - at `$.products[0].vllm[0]`",
        ),
        ("products: [{models: [a], targets: [b200], tp: [1]}]", "unknown field `tp`"),
        ("deployments: [{name: ../x, serve: a, target: b200}]", "`$.deployments[0].name`"),
        ("deployments: [{name: X, serve: a, target: b200}]", "'X' cannot name an image"),
        (
            "deployments: [{name: x, serve: -dp 8, target: b200}]",
            "the model must stand first - at `$.deployments[0].serve`",
        ),
        (
            "deployments: [{name: x, serve: '', target: b200}]",
            "the model must stand first - at `$.deployments[0].serve`",
        ),
        (
            "products: [{models: [a/x, b/x], targets: [b200]}]",
            "two deployments are called x-b200",
        ),
        (
            TWICE,
            "at `$.products[0]` and `$.deployments[0]`",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused_where_it_stands(text, said):
    with pytest.raises(InputError) as caught:
        parse(text)

    assert str(caught.value).startswith("matrix.yaml: ")
    assert said in str(caught.value)


def test_the_matrix_of_the_repository_is_one(root):
    found = read_matrix(root / "manifests" / "matrix.yaml")

    assert len(found) > 20
    for each in found:
        for name in each.tunings:
            assert (root / "manifests" / name).is_file()
