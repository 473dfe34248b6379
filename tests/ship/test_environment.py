"""The environment, in forms that their readers take back as it was."""

import re
import subprocess

import msgspec
import pytest
import yaml

from prewarm.core.errors import InputError
from prewarm.core.toolchain import Ptxas
from prewarm.ship.environment import Variable, environment, render_environment

AWKWARD = "/a dir/with 'both' \"quotes\", $HOME, $(HOME), `id` and a \\ in öäü"


def tools(cache, **changes):
    return msgspec.structs.replace(cache.compiled.toolchain, **changes)


def plain(variables):
    return {variable.name: variable.value for variable in variables}


def test_a_plain_toolchain_needs_two_variables(cache):
    assert plain(environment("/cache/triton", tools(cache))) == {
        "TRITON_CACHE_DIR": "/cache/triton",
        "TRITON_CACHE_AUTOTUNING": "1",
    }


def test_what_entered_the_keys_is_set_again(cache):
    found = environment("/c", tools(cache, key_environment={"TRITON_ENABLE_ASAN": "0", "A": "1"}))
    assert [v.name for v in found][2:] == ["A", "TRITON_ENABLE_ASAN"]
    assert {v.why for v in found[2:]} == {"is part of the keys"}


def test_another_ptxas_is_named_again(cache):
    name = "TRITON_PTXAS_BLACKWELL_PATH"
    chosen = Ptxas(version="13.0.88", text="", chosen_by=name)
    found = environment("/c", tools(cache, ptxas=chosen, environment={name: "/p", "OTHER": "1"}))
    assert plain(found[2:]) == {name: "/p"}
    assert found[2].why == "names the ptxas in the keys"


def test_a_shell_reads_it_back():
    text = render_environment((Variable(name="AWKWARD", value=AWKWARD, why=""),), "shell")
    found = subprocess.run(
        ["sh", "-c", f'{text}printf %s "$AWKWARD"'], capture_output=True, check=True
    )
    assert found.stdout.decode() == AWKWARD


def test_kubernetes_reads_it_back():
    text = render_environment((Variable(name="AWKWARD", value=AWKWARD, why=""),), "kubernetes")
    (found,) = yaml.safe_load(text)
    assert found["name"] == "AWKWARD"
    assert found["value"].replace("$$(", "$(") == AWKWARD
    assert not re.search(r"(?<!\$)\$\(", found["value"])


def test_a_dockerfile_escapes_what_it_would_expand():
    text = render_environment((Variable(name="A", value='x" $HOME \\', why=""),), "dockerfile")
    assert text == 'ENV A="x\\" \\$HOME \\\\"\n'


@pytest.mark.parametrize("form", ["shell", "dockerfile", "kubernetes"])
def test_a_value_of_several_lines_is_refused(form):
    with pytest.raises(InputError, match="several lines"):
        render_environment((Variable(name="A", value="1\n2", why=""),), form)
