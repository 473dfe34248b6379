"""A really compiled library from the directory it was built in to the process that loads it."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from prewarm.cli import main
from prewarm.core.cache import COMPILED_NAME, Compiled, HostModule, cache_document
from prewarm.core.errors import InputError
from prewarm.core.finding import FLASHINFER_BUILDS, FLASHINFER_ELSEWHERE
from prewarm.core.flashinfer import BLACKWELL, HOPPER, RECORD_NAME, PrefillCall
from prewarm.core.flashinfer_file import read_built
from prewarm.core.manifest import Elsewhere, Manifest
from prewarm.flashinfer.fit import Surroundings, misfits, not_found
from prewarm.ship.environment import Variable, environment, render_environment
from prewarm.ship.install import install
from prewarm.ship.layout import read_layout
from prewarm.ship.pack import pack
from prewarm.ship.source import open_source
from prewarm.ship.verify import installed_manifest, verify_directory

Asked = Callable[..., Elsewhere]
KEY = "A" * 52
BYTECODE = {"PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX"}
"""Without these Python stores what it compiles of modules, beside them."""

LOADS = f"""
import json, sys
from prewarm.flashinfer.flashinfer_seam import prebuilt
from flashinfer.jit.gdn import gen_gdn_prefill_sm90_module
spec = gen_gdn_prefill_sm90_module()
library = spec.build_and_load() if spec.is_aot else None
print(json.dumps([str(spec.aot_path), library is not None, prebuilt({HOPPER!r})]))
"""

SERVES = """
import json, sys
from pathlib import Path
from prewarm.serve.counts import LIBRARY_BUILDS, LIBRARY_LOADS
from prewarm.serve.flashinfer_seam import hear_libraries
from prewarm.serve.installed import InstalledCache
from prewarm.serve.libraries import use_libraries
from prewarm.serve.observer import Observer
entries = Path(sys.argv[1])
use_libraries(entries)
cache = InstalledCache(entries)
observer = Observer(cache, "warn", None, None)
for _ in ("a model", "its drafts"):
    hear_libraries(observer.took_library)
from flashinfer.jit.gdn import gen_gdn_prefill_sm90_module
try:
    gen_gdn_prefill_sm90_module().build_and_load()
except Exception as error:
    print(type(error).__name__, file=sys.stderr)
found = observer.counter.counts()
print(json.dumps([found.total(LIBRARY_LOADS, planned=True), found.total(LIBRARY_BUILDS)]))
"""


@pytest.fixture
def hopper(manifest: Manifest, asked: Asked, call: PrefillCall, built: Path) -> Manifest:
    """Return a manifest of a deployment on H100 that prefills with FlashInfer."""
    cuda = read_built(built).cuda
    return msgspec.structs.replace(
        manifest,
        deployment=msgspec.structs.replace(manifest.deployment, target="h100"),
        toolchain=msgspec.structs.replace(
            manifest.toolchain, cuda=cuda, machine=platform.machine()
        ),
        elsewhere=(asked(HOPPER, call),),
    )


@pytest.fixture
def compiled(hopper: Manifest, tmp_path: Path) -> Path:
    """Return what `compile` leaves of a deployment without launches: one host module."""
    directory = tmp_path / "compiled"
    (directory / KEY).mkdir(parents=True)
    (directory / KEY / "cuda_utils.so").write_bytes(b"a host module")
    index = Compiled(
        manifest=hopper.digest,
        arch=90,
        toolchain=hopper.toolchain,
        launches=(),
        host_modules=(HostModule(name="cuda_utils", key=KEY, file="cuda_utils.so"),),
    )
    (directory / COMPILED_NAME).write_bytes(cache_document(index))
    return directory


@pytest.fixture
def image(hopper: Manifest, compiled: Path, built: Path, tmp_path: Path) -> Path:
    """Return an image layout with the library in it."""
    pack(hopper, compiled, tmp_path / "image", flashinfer=built)
    return tmp_path / "image"


@pytest.fixture
def python(root: Path, tmp_path: Path):
    """Return a function that runs code where no compiler is on PATH, and returns its JSON."""

    def run(code: str, *arguments: Path, first: Path | None = None) -> list[object]:
        done = subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments)],
            env={
                **{name: each for name, each in os.environ.items() if name not in BYTECODE},
                "PATH": "/nowhere",
                "PYTHONPATH": os.pathsep.join(map(str, [*([first] if first else []), root])),
                "FLASHINFER_WORKSPACE_BASE": str(tmp_path / "workspace"),
                "FLASHINFER_CUDA_ARCH_LIST": "9.0a",
            },
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        found: list[object] = json.loads(done.stdout.splitlines()[-1])
        return found

    return run


def test_an_image_holds_the_library_the_finder_and_the_record_and_says_so(
    image: Path, built: Path
) -> None:
    cache = open_source(image)

    assert {path for path in cache.files if path.startswith("flashinfer/")} == {
        f"flashinfer/aot/{HOPPER}/{HOPPER}.so",
        "flashinfer/python/flashinfer_jit_cache/__init__.py",
        f"flashinfer/{RECORD_NAME}",
    }
    assert cache.manifest.flashinfer == read_built(built)
    labels = read_layout(image).config.config.labels
    assert labels["dev.prewarm.flashinfer.instances"] == "bf16_g1b1a1i1c0"


def test_an_installed_library_is_loaded_without_a_compiler_and_after_a_move(
    image: Path, tmp_path: Path, python
) -> None:
    done = install(image, tmp_path / "one")
    assert done.python is not None
    assert verify_directory(tmp_path / "one") == ()
    path, loaded, _ = python(LOADS, first=Path(done.python))
    assert loaded
    assert str(path).startswith(str(tmp_path / "one"))

    (tmp_path / "one").rename(tmp_path / "other")
    path, loaded, _ = python(LOADS, first=tmp_path / "other" / "flashinfer" / "python")
    assert loaded
    assert str(path).startswith(str(tmp_path / "other"))


def test_what_python_compiles_of_the_finder_is_not_a_stranger(
    image: Path, tmp_path: Path, python
) -> None:
    done = install(image, tmp_path / "cache")
    python(LOADS, first=Path(str(done.python)))

    assert list(Path(str(done.python)).rglob("*.pyc"))
    assert verify_directory(tmp_path / "cache") == ()


def test_the_link_follows_the_version_and_an_install_brings_it_back(
    image: Path, tmp_path: Path
) -> None:
    install(image, tmp_path / "cache")
    (tmp_path / "cache" / "flashinfer").unlink()

    (finding,) = verify_directory(tmp_path / "cache")
    assert finding.subject == "flashinfer"
    assert install(image, tmp_path / "cache").state == "installed"
    assert verify_directory(tmp_path / "cache") == ()


def test_an_altered_library_is_found(image: Path, tmp_path: Path) -> None:
    install(image, tmp_path / "cache")
    library = tmp_path / "cache" / "flashinfer" / "aot" / HOPPER / f"{HOPPER}.so"
    library.write_bytes(library.read_bytes() + b"x")

    assert [each.code for each in verify_directory(tmp_path / "cache")] == ["P103"]


def test_a_library_that_is_not_the_one_that_was_built_is_refused(
    hopper: Manifest, compiled: Path, built: Path, tmp_path: Path
) -> None:
    for name in ("aot", "python"):
        shutil.copytree(built / name, tmp_path / "built" / name)
    shutil.copy(built / RECORD_NAME, tmp_path / "built")
    library = tmp_path / "built" / "aot" / HOPPER / f"{HOPPER}.so"
    library.write_bytes(library.read_bytes() + b"x")

    with pytest.raises(InputError, match="is not the file that was built"):
        pack(hopper, compiled, tmp_path / "image", flashinfer=tmp_path / "built")
    assert not (tmp_path / "image").exists()


def test_a_directory_without_a_record_is_refused_with_the_command_that_fills_it(
    hopper: Manifest, compiled: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="nothing of FlashInfer was built there") as raised:
        pack(hopper, compiled, tmp_path / "image", flashinfer=tmp_path)
    assert "--flashinfer" in str(raised.value.hint)


@pytest.mark.parametrize(
    ("changes", "subject", "words"),
    [
        ({}, None, ""),
        ({"flashinfer": "0.0.1"}, "release of FlashInfer", "0.0.1"),
        ({"cuda": "12.9"}, "major release of CUDA", "12"),
        ({"machine": "riscv64"}, "CPU architecture", "riscv64"),
        ({"libc": "glibc 2.17"}, "C library", "glibc 2.17"),
        ({"libc": "glibc 2.99"}, None, ""),
    ],
)
def test_a_miss_is_told_with_what_differs(
    hopper: Manifest, built: Path, changes: dict[str, str], subject: str | None, words: str
) -> None:
    record = read_built(built)
    like = {name: getattr(record, name) for name in ("flashinfer", "cuda", "machine", "libc")}

    found = misfits(record, hopper, Surroundings(**{**like, **changes}))

    assert [each.code for each in found] == ([FLASHINFER_BUILDS] if subject else [])
    assert all(each.subject == f"{HOPPER}: {subject}" for each in found)
    assert all(each.expected == words for each in found)


def test_an_instance_that_was_not_built_is_a_miss_by_name(
    hopper: Manifest, asked: Asked, call: PrefillCall, built: Path
) -> None:
    record = read_built(built)
    half = msgspec.structs.replace(call, dtype="fp16")
    other = msgspec.structs.replace(hopper, elsewhere=(asked(HOPPER, half),))
    like = {name: getattr(record, name) for name in ("flashinfer", "cuda", "machine", "libc")}

    (found,) = misfits(record, other, Surroundings(**like))

    assert found.expected == "half_g1b1a1i1c0"
    assert found.found == "only bf16_g1b1a1i1c0"


def test_a_path_that_leads_elsewhere_is_told(tmp_path: Path) -> None:
    (found,) = not_found(tmp_path)
    assert found.code == FLASHINFER_ELSEWHERE
    assert str(tmp_path / "flashinfer" / "python") in found.fix


def test_a_blackwell_kernel_is_not_packed_because_nothing_would_read_it(
    hopper: Manifest, compiled: Path, built: Path, tmp_path: Path
) -> None:
    record = json.loads((built / RECORD_NAME).read_text("utf-8"))
    (tmp_path / RECORD_NAME).write_text(json.dumps({**record, "module": BLACKWELL}), "utf-8")

    with pytest.raises(InputError, match="reads no file in its place"):
        pack(hopper, compiled, tmp_path / "image", flashinfer=tmp_path)


def test_the_path_is_put_before_the_one_that_is_there(hopper: Manifest) -> None:
    variables = environment("/c/triton", hopper.toolchain, "/c/flashinfer/python")
    shell = render_environment(variables, "shell") + 'echo "$PYTHONPATH"'

    def path(**given: str) -> str:
        done = subprocess.run(
            ["/bin/sh", "-c", shell], env=given, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    assert path() == "/c/flashinfer/python"
    assert path(PYTHONPATH="/a:/b") == "/c/flashinfer/python:/a:/b"
    assert 'ENV PYTHONPATH="/c/flashinfer/python${PYTHONPATH:+:$PYTHONPATH}"' in render_environment(
        variables, "dockerfile"
    )


def test_a_path_that_is_there_already_is_not_put_there_twice() -> None:
    variable = Variable(name="PYTHONPATH", value="/c", why="", prepended=True)
    assert variable.within({"PYTHONPATH": "/a:/c"}) == "/a:/c"
    assert variable.within({"PYTHONPATH": "/a"}) == "/c:/a"


def test_the_plugin_finds_the_library_without_a_path_and_counts_its_load_once(
    image: Path, tmp_path: Path, python
) -> None:
    done = install(image, tmp_path / "cache")
    assert installed_manifest(tmp_path / "cache").flashinfer is not None

    assert python(SERVES, Path(done.directory)) == [1, 0]


def test_show_says_what_an_image_holds_of_flashinfer(
    image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["show", str(image)]) == 0

    (line,) = (each for each in capsys.readouterr().out.splitlines() if "FlashInfer" in each)
    assert f", {HOPPER} for sm_90a by nvcc " in line
    assert line.endswith(": bf16_g1b1a1i1c0")
