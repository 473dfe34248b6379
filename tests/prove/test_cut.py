"""Models cut to their first layers."""

import pytest

from prewarm.core.errors import InputError
from prewarm.prove.cut import cut_config

NESTED = {
    "model_type": "a",
    "text_config": {
        "num_hidden_layers": 8,
        "layer_types": ["linear", "linear", "linear", "full"] * 2,
        "hidden_size": 64,
    },
}


def test_the_first_layers_stay_and_everything_else_with_them():
    found = cut_config(NESTED, 4)
    assert found == {
        "model_type": "a",
        "text_config": {
            "num_hidden_layers": 4,
            "layer_types": ["linear", "linear", "linear", "full"],
            "hidden_size": 64,
        },
    }
    assert NESTED["text_config"]["num_hidden_layers"] == 8


def test_a_flat_config_without_kinds_of_layers_can_be_cut():
    assert cut_config({"num_hidden_layers": 48, "x": 1}, 4) == {"num_hidden_layers": 4, "x": 1}


def test_more_layers_than_there_are_leaves_them_all():
    assert cut_config(NESTED, 80) == NESTED


def test_a_cut_that_leaves_one_kind_of_layer_is_refused_with_one_that_does_not():
    with pytest.raises(
        InputError, match="the first 3 layers of this model are all of one kind"
    ) as e:
        cut_config(NESTED, 3)
    assert e.value.hint == "--layers 4 or more"
