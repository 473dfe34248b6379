"""A serving process with the overlay, without a GPU: `overlay_child.py REQUEST`, JSON on stdout.

The request says which directories the overlay has (None: what the environment says) and which
steps follow. Everything that looks up, compiles, stores and loads is Triton's own.
"""

import hashlib
import json
import os
import shutil
import sys
import time
from pathlib import Path

from prewarm.core.target import target_named
from prewarm.ship.install import install

request = json.loads(sys.argv[1])
overlay = None
if request["baked"] is not None:
    from prewarm.serve.overlay import use_overlay

    overlay = use_overlay(Path(request["baked"]), request["writable"] and Path(request["writable"]))

import triton  # noqa: E402
import triton.language as tl  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402
from triton.runtime import build  # noqa: E402
from triton.runtime.cache import get_dump_manager  # noqa: E402

from prewarm.device import triton_seam  # noqa: E402

TARGET = "h100"
MODULE = """
#include <Python.h>
static struct PyModuleDef about = {PyModuleDef_HEAD_INIT, "answer", NULL, -1, NULL};
PyMODINIT_FUNC PyInit_answer(void) {
    PyObject *made = PyModule_Create(&about);
    PyModule_AddIntConstant(made, "answer", 42);
    return made;
}
"""


@triton.jit
def add(x, y, o, n, block: tl.constexpr):
    i = tl.program_id(0) * block + tl.arange(0, block)
    tl.store(o + i, tl.load(x + i, i < n) + tl.load(y + i, i < n), i < n)


@triton.jit
def scale(x, y, o, n, block: tl.constexpr):
    i = tl.program_id(0) * block + tl.arange(0, block)
    tl.store(o + i, tl.exp(tl.load(x + i, i < n)) * tl.load(y + i, i < n), i < n)


@triton.jit
def mark(x, y, o, n, block: tl.constexpr):
    tl.store(o, n + block)


@triton.autotune(
    [triton.Config({"block": block}) for block in (64, 128)], key=["n"], cache_results=True
)
@triton.jit
def tuned(x, n, block: tl.constexpr):
    tl.store(x + tl.arange(0, block), n)


heard = []
triton.knobs.compilation.listener = lambda **event: heard.append(event)
triton_seam.activate_virtual_driver(target_named(TARGET))


def serve(name, block):
    """Look a kernel up or compile it, and load it."""
    signature = {"x": "*fp32", "y": "*fp32", "o": "*fp32", "n": "i32", "block": "constexpr"}
    source = ASTSource(globals()[name], signature, {(4,): block}, {(0,): [["tt.divisibility", 16]]})
    kernel = triton.compile(source, target=GPUTarget("cuda", 90, 32))
    assert isinstance(kernel.run, triton_seam.VirtualLauncher)
    return {
        "hit": heard[-1]["cache_hit"],
        "key": triton_seam._key_of(kernel),
        "binary": hashlib.sha256(kernel.kernel).hexdigest(),
        "paths": kernel.metadata_group,
    }


def tune(winner):
    """Settle one tuning key: by its record, or by measuring, which lets `winner` win."""
    first, second = tuned.configs
    measured = []

    def measure():
        times = (1.0, 2.0) if winner == 64 else (2.0, 1.0)
        tuned.configs_timings = {first: [times[0]] * 3, second: [times[1]] * 3}
        tuned.cache[1,] = first if winner == 64 else second
        measured.append(winner)

    tuned.check_disk_cache((1,), tuned.configs, measure)
    return {"hit": not measured, "winner": tuned.cache[1,].kwargs["block"]}


def load():
    """Load a host module, built if it is not found."""
    built = []
    triton_build = build._build
    build._build = lambda *args: built.append(args) or triton_build(*args)
    module = build.compile_module_from_src(MODULE, "answer")
    assert module.answer == 42
    return {"hit": not built, "file": module.__file__, "key": Path(module.__file__).parent.name}


def remove(path):
    if os.path.islink(path):
        os.unlink(path)
    else:
        shutil.rmtree(path)


def move_triton(path):
    os.environ["TRITON_CACHE_DIR"] = path


def upgrade(image, into):
    install(Path(image), Path(into))


def wait_for(place, count):
    """Go on when `count` processes are here, or give up after a minute."""
    Path(place, str(os.getpid())).touch()
    late = time.monotonic() + 60
    while len(os.listdir(place)) < count:
        assert time.monotonic() < late
        time.sleep(0.001)


def dump(text):
    """Write a file as Triton does where it is asked to dump a kernel."""
    get_dump_manager("00" * 32).put(text, "dumped.txt")


steps = {each.__name__: each for each in (serve, tune, load, remove, move_triton)}
steps |= {each.__name__: each for each in (upgrade, wait_for, dump)}
answers = [steps[name](*arguments) for name, *arguments in request["steps"]]
manager = triton.knobs.cache.manager_class
sys.stdout.write(
    json.dumps(
        {
            "answers": [answer for answer in answers if answer is not None],
            "hits": overlay and dict(overlay.hits),
            "faults": overlay and dict(overlay.faults.counts),
            "writable": overlay and str(overlay.writable),
            "triton_directory": os.environ.get("TRITON_CACHE_DIR"),
            "modules": sorted({"torch"} & set(sys.modules)),
            "manager": manager and manager.__name__,
        }
    )
)
