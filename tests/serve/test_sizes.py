import importlib.util
import sys
from pathlib import Path

import msgspec
import pytest

torch = pytest.importorskip("torch")
triton = pytest.importorskip("triton")

from triton.runtime.driver import driver  # noqa: E402

from prewarm.core.cache import CACHE_MANIFEST, ENTRIES, CacheManifest, cache_document  # noqa: E402
from prewarm.core.errors import InputError  # noqa: E402
from prewarm.core.manifest import Candidate  # noqa: E402
from prewarm.core.selection import Choice, Selection  # noqa: E402
from prewarm.core.target import target_named  # noqa: E402
from prewarm.core.tunings import SizedBy, SizeWinner  # noqa: E402
from prewarm.device import triton_seam  # noqa: E402
from prewarm.serve import sizes  # noqa: E402

MODULE = "prewarm_test_sized_kernels"
SCALE, SHIFT = f"{MODULE}:scale", f"{MODULE}:shift"

SMALL = Candidate(constexprs={"B": 16}, num_warps=1, num_stages=3)
LARGE = Candidate(constexprs={"B": 32}, num_warps=2, num_stages=3)
MANY = Candidate(constexprs={"B": 64}, num_warps=4, num_stages=3)
UNLISTED = Candidate(constexprs={"B": 128}, num_warps=8, num_stages=2)

KEY = {"H": 2, "VARLEN": True, "dtype of x": "torch.bfloat16", "dtype of ends": "torch.int32"}
WINNERS = {(1024, 1): SMALL, (4096, 1): LARGE, (4096, 8): MANY}


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        path = Path(__file__).with_name("sized_kernels.py")
        spec = importlib.util.spec_from_file_location(MODULE, path)
        module = importlib.util.module_from_spec(spec)
        patch.setitem(sys.modules, MODULE, module)
        spec.loader.exec_module(module)
        before = driver._active
        triton_seam.activate_virtual_driver(target_named("h100"))
        yield module
        driver.set_active(before)


@pytest.fixture(autouse=True)
def _as_new(kernels):
    kernels.MEASURED.clear()
    for tuner in (kernels.scale.fn, kernels.shift):
        tuner.cache.clear()


@pytest.fixture
def installed(kernels):
    installed = sizes.install([choice()])
    yield installed
    installed.uninstall()


def choice(
    kernel=SCALE, *, key=KEY, winners=WINNERS, tokens="T", sequences="ends", sized=True
) -> Choice:
    return Choice(
        kernel=kernel,
        key=key,
        winner=MANY,
        sized_by=SizedBy(tokens=tokens, sequences=sequences) if sized else None,
        sizes=tuple(
            SizeWinner(tokens=tokens, sequences=sequences, config=config)
            for (tokens, sequences), config in winners.items()
        ),
    )


def ends(sequences):
    return torch.zeros(sequences + 1, dtype=torch.int32)


def candidate_of(kernel) -> Candidate:
    """Return the config of a launched kernel."""
    names = kernel.src.fn.arg_names
    values = {names[place]: value for (place,), value in kernel.src.constants.items()}
    metadata = kernel.metadata
    return Candidate(
        constexprs={"B": values["B"]},
        num_warps=metadata.num_warps,
        num_stages=metadata.num_stages,
    )


def launch(kernels, tokens, sequences=1, *, heads=2, dtype=torch.bfloat16) -> Candidate:
    """Launch `scale` by keywords; return the config it was launched with."""
    x = torch.zeros(64, dtype=dtype)
    return candidate_of(kernels.scale[(1,)](x=x, ends=ends(sequences), T=tokens, H=heads))


@pytest.mark.parametrize(("size", "winner"), WINNERS.items())
def test_a_measured_size_takes_its_winner_and_benchmarks_nothing(kernels, installed, size, winner):
    assert launch(kernels, *size) == winner
    assert launch(kernels, *size) == winner
    assert kernels.MEASURED == []


@pytest.mark.parametrize(
    ("tokens", "sequences", "winner"),
    [
        (1, 1, SMALL),
        (2047, 1, SMALL),
        (2049, 1, LARGE),
        (1 << 20, 1, LARGE),
        (4096, 2, LARGE),
        (4096, 3, MANY),
        (1 << 20, 500, MANY),
        (1024, 2, SMALL),
    ],
)
def test_between_measured_sizes_the_nearest_in_log2_wins(
    kernels, installed, tokens, sequences, winner
):
    assert launch(kernels, tokens, sequences) == winner
    assert kernels.MEASURED == []


def test_each_way_to_pass_the_arguments_takes_the_same_winner(kernels, installed):
    x = torch.zeros(64, dtype=torch.bfloat16)
    scale = kernels.scale[(1,)]

    ways = [
        scale(x, ends(8), 4096, 2),
        scale(x, ends(8), T=4096, H=2),
        scale(x, T=4096, H=2, ends=ends(8)),
    ]

    assert [candidate_of(kernel) for kernel in ways] == [MANY] * 3
    assert kernels.MEASURED == []


def test_a_launch_leaves_the_autotuner_as_triton_leaves_it(kernels, installed):
    launch(kernels, 4096)
    ours = dict(vars(kernels.scale.fn))
    installed.uninstall()
    kernels.scale.fn.cache[2, True, "torch.bfloat16", "torch.int32"] = kernels.CANDIDATES[1]
    launch(kernels, 4096)

    assert ours["best_config"] is vars(kernels.scale.fn)["best_config"]
    assert ours["nargs"] is vars(kernels.scale.fn)["nargs"]


def test_a_winner_beyond_the_list_of_candidates_is_launched(kernels):
    installed = sizes.install([choice(winners={(64, 1): UNLISTED})])

    assert launch(kernels, 100) == UNLISTED
    installed.uninstall()


OTHERS = {
    "another value in the key": {"heads": 4},
    "another dtype": {"dtype": torch.float32},
    "no tokens": {"tokens": 0},
}


@pytest.mark.parametrize("changed", OTHERS.values(), ids=OTHERS)
def test_a_launch_of_another_kind_goes_triton_s_own_way(kernels, installed, changed):
    asked = {"tokens": 4096, "sequences": 8, **changed}

    for _ in range(2):
        assert launch(kernels, **asked) == SMALL
    assert kernels.MEASURED == ["scale"] * 3
    assert launch(kernels, 4096, 8) == MANY


def test_a_launch_without_the_tensor_of_sequences_goes_triton_s_own_way(kernels, installed):
    x = torch.zeros(64, dtype=torch.bfloat16)

    kernel = kernels.scale[(1,)](x=x, ends=None, T=4096, H=2)

    assert candidate_of(kernel) == SMALL
    assert kernels.MEASURED == ["scale"] * 3


@pytest.mark.parametrize("names", [{"tokens": "N"}, {"sequences": "N"}, {"sequences": "T"}])
def test_a_choice_that_names_no_fitting_argument_leaves_launches_to_triton(kernels, names):
    installed = sizes.install([choice(**names)])

    assert launch(kernels, 4096, 8) == SMALL
    assert kernels.MEASURED == ["scale"] * 3
    installed.uninstall()


def test_each_tuning_key_has_its_own_winners(kernels):
    other = choice(key={**KEY, "H": 4}, winners={(1024, 1): UNLISTED})
    installed = sizes.install([choice(), other])

    assert launch(kernels, 1024) == SMALL
    assert launch(kernels, 1024, heads=4) == UNLISTED
    assert kernels.MEASURED == []
    installed.uninstall()


def test_a_kernel_without_sequences_goes_by_its_tokens(kernels):
    key = {"H": 3, "dtype of x": "torch.float32"}
    sized = choice(SHIFT, key=key, winners={(8, 1): MANY, (64, 1): LARGE}, sequences=None)
    installed = sizes.install([sized])

    launched = [kernels.shift[(1,)](torch.zeros(64), tokens, H=3) for tokens in (8, 60)]

    assert [candidate_of(kernel) for kernel in launched] == [MANY, LARGE]
    assert kernels.MEASURED == []
    installed.uninstall()


def test_more_sizes_than_are_remembered_still_take_their_winners(kernels, installed):
    x = torch.zeros(64, dtype=torch.bfloat16)
    one = ends(1)
    last = sizes._MOST_REMEMBERED + 100

    for tokens in range(1, last):
        kernels.scale[(1,)](x=x, ends=one, T=tokens, H=2)

    assert [launch(kernels, tokens) for tokens in (1, 2047, 2049, last)] == [
        SMALL,
        SMALL,
        LARGE,
        LARGE,
    ]
    assert kernels.MEASURED == []


def test_uninstalled_kernels_are_triton_s_again(kernels):
    installed = sizes.install([choice()])
    assert installed.kernels == (SCALE,)
    launch(kernels, 4096, 8)

    installed.uninstall()
    installed.uninstall()

    assert installed.kernels == ()
    assert "run" not in vars(kernels.scale.fn)
    assert launch(kernels, 4096, 8) == SMALL
    assert kernels.MEASURED == ["scale"] * 3


def test_choices_without_sizes_install_nothing(kernels):
    installed = sizes.install([choice(sized=False), choice(winners={})])

    assert (installed.kernels, installed.left) == ((), {})


def test_kernels_that_cannot_be_sized_are_left_and_named(kernels, installed):
    unfit = Candidate(constexprs={"B": {"dtype": "bf16"}}, num_warps=1, num_stages=1)
    again = sizes.install(
        [
            choice(),
            choice(f"{MODULE}:nowhere"),
            choice("no_such_module:kernel"),
            choice(f"{MODULE}:hooked"),
            choice(f"{MODULE}:untuned"),
            choice(SHIFT, winners={(1, 1): unfit}),
        ]
    )

    assert again.kernels == ()
    assert again.left == {
        SCALE: f"{SCALE}: something else replaces its autotuner's run",
        f"{MODULE}:nowhere": f"cannot import the kernel {MODULE}:nowhere:"
        f" module '{MODULE}' has no attribute 'nowhere'",
        "no_such_module:kernel": "cannot import the kernel no_such_module:kernel:"
        " No module named 'no_such_module'",
        f"{MODULE}:hooked": f"{MODULE}:hooked: a candidate has a hook",
        f"{MODULE}:untuned": f"{MODULE}:untuned has no autotuner",
        SHIFT: "{'B': {'dtype': 'bf16'}} holds more than plain values",
    }
    assert launch(kernels, 4096, 8) == MANY


def test_a_process_in_which_autotuners_run_in_another_way_is_left_alone(kernels, monkeypatch):
    first = triton.Config({"B": 16}, num_warps=1)
    monkeypatch.setattr(
        type(kernels.scale.fn),
        "run",
        lambda tuner, *args, **keywords: tuner.fn.run(*args, **keywords, **first.all_kwargs()),
    )

    installed = sizes.install([choice()])

    assert installed.left == {SCALE: f"{SCALE}: something else replaces its autotuner's run"}
    assert launch(kernels, 4096, 8) == SMALL


def installed_tree(directory, manifest, selection):
    """Lay a cache's own manifest down as `install` does; return what TRITON_CACHE_DIR names."""
    made = CacheManifest(
        manifest=manifest.digest,
        deployment=manifest.deployment,
        target_arch=90,
        toolchain=manifest.toolchain,
        launches=(),
        host_modules=(),
        selection=selection,
        files=(),
    )
    version = directory / "versions" / ("0" * 16)
    (version / ENTRIES).mkdir(parents=True)
    (version / CACHE_MANIFEST).parent.mkdir()
    (version / CACHE_MANIFEST).write_bytes(cache_document(made))
    (directory / "triton").symlink_to(version / ENTRIES)
    return directory / "triton"


def test_the_choices_of_an_installed_cache_are_those_of_its_selection(tmp_path, manifest):
    selection = Selection(gpu="NVIDIA H100 80GB HBM3", tunings="sha256:0", choices=(choice(),))

    read = sizes.choices_of(installed_tree(tmp_path, manifest, selection))

    assert msgspec.to_builtins(read) == msgspec.to_builtins((choice(),))


def test_a_cache_made_without_tunings_has_no_choices(tmp_path, manifest):
    assert sizes.choices_of(installed_tree(tmp_path, manifest, None)) == ()


def test_a_directory_that_was_not_installed_is_refused(tmp_path):
    with pytest.raises(InputError, match="is not an installed cache"):
        sizes.choices_of(tmp_path / "cache")
