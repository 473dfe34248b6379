import shutil
from importlib.util import find_spec
from pathlib import Path

import msgspec
import pytest

from prewarm.core.errors import InputError
from prewarm.make.entries import sweep
from prewarm.make.lookup import look_up


@pytest.fixture
def cache(compiled, tmp_path) -> Path:
    """Return a cache directory of one's own."""
    directory = shutil.copytree(compiled("b200"), tmp_path / "cache of its own")
    sweep(directory)
    return directory


def test_everything_compiled_is_found_by_a_process_set_up_as_serving_is(sample, compiled):
    found = look_up(sample("b200"), compiled("b200"))
    assert found.misses == ()
    assert [answer.launch for answer in found.answers] == [
        launch.digest for launch in sample("b200").launches()
    ]
    assert {len(answer.host_modules) for answer in found.answers} == {2}
    assert found.toolchain.differences(sample("b200").toolchain) == ()


def test_an_empty_directory_has_nothing_and_stays_empty(sample, tmp_path):
    found = look_up(sample("b200"), tmp_path)
    assert len(found.misses) == len(found.answers) == 5
    assert {answer.reason for answer in found.answers} == {"there is no entry of this key"}
    assert all(answer.key for answer in found.answers)
    assert list(tmp_path.iterdir()) == []


def test_each_thing_that_is_missing_is_named(sample, cache):
    shutil.rmtree(next(cache.glob("*/l2norm_fwd_kernel2.cubin")).parent)
    for module in cache.glob("*/cuda_utils.*"):
        shutil.rmtree(module.parent)
    before = sorted(cache.rglob("*"))
    found = look_up(sample("b200"), cache)
    reasons = {answer.kernel.partition(":")[2]: answer.reason for answer in found.answers}
    assert reasons["l2norm_fwd_kernel2"] == "there is no entry of this key"
    assert reasons["chunk_fwd_kernel_o"] == "cuda_utils would be built with a C compiler"
    assert sorted(cache.rglob("*")) == before


def test_a_moved_cache_is_a_miss(sample, compiled, cache):
    moved = cache.rename(cache.with_name("moved"))
    assert len(look_up(sample("b200"), moved).misses) == 5


def test_variables_of_this_process_count_and_not_those_of_the_manifest(
    sample, compiled, monkeypatch
):
    monkeypatch.setenv("TRITON_DISABLE_LINE_INFO", "1")
    found = look_up(sample("b200"), compiled("b200"))
    assert len(found.misses) == 5
    assert found.toolchain.differences(sample("b200").toolchain) == (
        ("environment TRITON_DISABLE_LINE_INFO", "true", "(unset)"),
    )


def test_another_kernel_source_is_a_miss_that_says_so(sample, compiled):
    manifest = sample("b200")
    kernel = msgspec.structs.replace(manifest.kernels[0], source="sha256:" + "0" * 64)
    manifest = msgspec.structs.replace(manifest, kernels=(kernel, *manifest.kernels[1:]))
    (first, *others) = {
        answer.kernel: answer for answer in look_up(manifest, compiled("b200")).answers
    }.values()
    assert first.key is None
    assert "is not the one that was planned" in first.reason
    assert all(answer.hit for answer in others)


def test_a_ptxas_that_flashinfer_chooses_in_serving_is_the_one_that_is_looked_up(
    sample, compiled, tmp_path, monkeypatch
):
    """A deployment planned where flashinfer found no ptxas, served where it finds a newer one."""
    # Not imported here: it would choose a ptxas for this process and all its children.
    if find_spec("flashinfer") is None:
        pytest.skip("flashinfer is not installed")
    (tmp_path / "bin").mkdir()
    torch = Path(find_spec("torch").origin).parent
    (tmp_path / "bin" / "ptxas").symlink_to(torch / "bin" / "ptxas")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    toolchain = sample("b200").toolchain
    served = msgspec.structs.replace(toolchain.ptxas, chosen_by="TRITON_PTXAS_BLACKWELL_PATH")
    manifest = msgspec.structs.replace(
        sample("b200"), toolchain=msgspec.structs.replace(toolchain, ptxas=served)
    )
    found = look_up(manifest, compiled("b200"))
    assert len(found.misses) == 5
    ((field, here, planned),) = found.toolchain.differences(toolchain)
    assert (field, planned) == ("ptxas", toolchain.ptxas.version)
    assert here != planned


def test_an_unknown_target_is_refused(sample, tmp_path):
    manifest = msgspec.structs.replace(
        sample("b200"),
        deployment=msgspec.structs.replace(sample("b200").deployment, target="b9000"),
    )
    with pytest.raises(InputError, match="unknown target 'b9000'"):
        look_up(manifest, tmp_path)
