"""Every private name of FlashInfer: its generator, its commands, where it looks for libraries.

FlashInfer reads its directories and architectures from the environment while it is imported: see
`environment`.
"""

from __future__ import annotations

import ctypes
import dataclasses
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from prewarm.core.flashinfer import HOPPER, PYTHON, PrefillCall

_INSTANCE = re.compile(r"gdn_prefill_kernel_(\w+)")
_INSTANTIATION = re.compile(
    r"^template void launch_delta_rule_prefill_kernel_gbai<.*?;", re.MULTILINE | re.DOTALL
)
_STUB = """\
#include <cstdint>
#include <stdexcept>
struct CUstream_st;
struct __half;
struct __nv_bfloat16;
using cudaStream_t = CUstream_st*;
using half = __half;
using nv_bfloat16 = __nv_bfloat16;
namespace cutlass {{ namespace arch {{ struct Sm90; }} }}
namespace flat {{
template <bool, bool, bool, bool, bool, typename Arch, typename TO, typename TQKV, typename TState>
void launch_delta_rule_prefill_kernel_gbai(
    cudaStream_t, TO*, TState*, TQKV const*, TQKV const*, TQKV const*, TState const*,
    float const*, float const*, int64_t const*, uint8_t*, int32_t, int32_t, int32_t, int32_t,
    int32_t, int32_t, int64_t, float, int32_t, float*, int64_t const*, int32_t) {{
  throw std::runtime_error("{message}");
}}
{instantiations}
}}
"""

_OURS = "+prewarm"
"""Ends the release of the package by which FlashInfer finds our libraries."""
_FINDER = """\
\"\"\"Libraries that prewarm built, where FlashInfer looks for flashinfer-jit-cache.\"\"\"

from pathlib import Path

__version__ = "{version}{ours}"


def get_jit_cache_dir() -> str:
    \"\"\"Return the directory of libraries beside this package's own.\"\"\"
    return str(Path(__file__).resolve().parents[{up}] / "{directory}")
"""

DLPACK_CUDA = 2


@dataclasses.dataclass(frozen=True)
class Part:
    """One source of a library and the command that compiles it."""

    name: str
    """The instance, or the file's stem where it is none."""
    instance: bool
    source: Path
    compiler: tuple[str, ...]
    """Without the source and the object."""


def environment(work: Path, arch: str, cuda_home: str | None = None) -> dict[str, str | None]:
    """Return the variables, None to unset one, under which FlashInfer generates into `work`.

    `arch` is a compute capability: `9.0a`. Set them before FlashInfer is imported.
    """
    return {
        "FLASHINFER_WORKSPACE_BASE": str(work),
        "FLASHINFER_CUDA_ARCH_LIST": arch,
        "FLASHINFER_DISABLE_JIT": None,
        "FLASHINFER_NVCC": None,
        # __FILE__ stands in error messages: the same library wherever the sources were generated.
        "FLASHINFER_EXTRA_CUDAFLAGS": f"-Xcompiler -ffile-prefix-map={work}=/flashinfer",
        "CUTE_DSL_ARCH": f"sm_{arch.replace('.', '')}",
        **({"CUDA_HOME": cuda_home} if cuda_home else {}),
    }


def version() -> str:
    """Return FlashInfer's release."""
    return metadata.version("flashinfer-python")


def tvm_ffi_version() -> str:
    """Return the release of the interface that FlashInfer's libraries are called through."""
    return metadata.version("apache-tvm-ffi")


def cutlass_dsl_version() -> str:
    """Return the release of the compiler of Blackwell's kernels."""
    return metadata.version("nvidia-cutlass-dsl")


# --- Hopper: a library of CUDA instances ---------------------------------------------------


def hopper_parts() -> tuple[Part, ...]:
    """Generate the sources of the Hopper library; return them with their commands."""
    from flashinfer.jit.gdn import gen_gdn_prefill_sm90_module

    spec = gen_gdn_prefill_sm90_module()
    return tuple(_part(command) for command in spec.get_compile_commands())


def _part(command: dict[str, str]) -> Part:
    source = Path(command["file"])
    compiler, *rest = shlex.split(command["command"])
    for option in ("-c", "-o"):
        at = rest.index(option)
        del rest[at : at + 2]
    found = _INSTANCE.fullmatch(source.stem)
    return Part(
        name=found[1] if found else source.stem,
        instance=found is not None,
        source=source,
        compiler=(compiler, *rest),
    )


def stubs(left_out: Iterable[Part], message: str) -> str:
    """Return C++ that stands for the instances `left_out`: each raises `message` when called."""
    found = [_INSTANTIATION.search(part.source.read_text("utf-8")) for part in left_out]
    texts = [match[0] for match in found if match]
    return _STUB.format(message=message, instantiations="\n".join(texts))


def finder(directory: str) -> tuple[str, str]:
    """Return path and text of a module by which FlashInfer finds the libraries in `directory`.

    FlashInfer asks the package flashinfer-jit-cache, wherever it is imported from, and then
    neither runs ninja nor looks for a compiler. The path belongs into a directory of PYTHONPATH
    that lies beside `directory`; both can be moved together.
    """
    path = "flashinfer_jit_cache/__init__.py"
    up = path.count("/") + 1
    return path, _FINDER.format(version=version(), ours=_OURS, up=up, directory=directory)


def library_place(module: str) -> str:
    """Return where FlashInfer looks for a prebuilt library, relative to its AOT directory."""
    return f"{module}/{module}.so"


def load_library(file: Path) -> None:
    """Load a library as FlashInfer does, with every symbol bound; raises OSError, RuntimeError."""
    import torch
    import tvm_ffi

    assert torch.version.cuda  # torch brings the CUDA runtime
    ctypes.CDLL(str(file), mode=2)  # RTLD_NOW
    tvm_ffi.load_module(str(file))["gdn_prefill"]


class Prebuilt(NamedTuple):
    """What brings a library to a process."""

    what: str
    spares: bool
    """Whether an image needs no library of ours: FlashInfer's own is there, and just loaded."""


def prebuilt(module: str) -> Prebuilt | None:
    """Return what brings the library `module` to a process here, None where nothing does."""
    if module != HOPPER or find_spec("flashinfer") is None:
        return None
    jit_env = import_module("flashinfer.jit.env")
    if (jit_env.FLASHINFER_AOT_DIR / library_place(module)).exists():
        if not jit_env.has_flashinfer_jit_cache():
            return Prebuilt("a library in FlashInfer's own directory", spares=True)
        release = str(import_module("flashinfer_jit_cache").__version__)
        return Prebuilt(f"flashinfer-jit-cache {release}", spares=not release.endswith(_OURS))
    if (jit_env.FLASHINFER_JIT_DIR / library_place(module)).exists():
        what = "a filled cache directory, which ninja looks through at each start"
        return Prebuilt(what, spares=False)
    return None


# --- on a GPU ------------------------------------------------------------------------------


def use_libraries(directory: Path) -> None:
    """Let FlashInfer find what was built in `directory`; before it is imported."""
    sys.path.insert(0, str(directory / PYTHON))


def prefill(call: PrefillCall, tokens: int, sequences: int) -> Callable[[], Any]:
    """Return `call` on random input, as vLLM makes it: the exponential of the gate with it.

    `tokens` are those of all `sequences`, which are equally long but for the last.
    """
    import torch
    from flashinfer.gdn_prefill import chunk_gated_delta_rule
    from torch.nn.functional import logsigmoid, normalize

    generator = torch.Generator("cuda").manual_seed(tokens + sequences)
    like = torch.bfloat16 if call.dtype == "bf16" else torch.float16
    state = torch.float32 if call.state_dtype == "fp32" else torch.bfloat16
    dim, values = call.head_dim, call.value_heads

    def normal(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device="cuda", dtype=dtype)

    ends = [tokens // sequences * each for each in range(sequences)] + [tokens]
    queries, keys = (
        normalize(normal(tokens, call.query_heads, dim), dim=-1).to(like) for _ in range(2)
    )
    gate = logsigmoid(normal(tokens, values) + 3)
    given = {
        "q": queries,
        "k": keys,
        "v": normal(tokens, values, dim, dtype=like),
        "beta": normal(tokens, values).sigmoid() if call.beta else None,
        "initial_state": (
            0.1 * normal(sequences, values, dim, dim, dtype=state) if call.initial_state else None
        ),
        "output_final_state": call.final_state,
        "cu_seqlens": torch.tensor(ends, dtype=torch.int32, device="cuda"),
    }
    return lambda: chunk_gated_delta_rule(**given, g=torch.exp(gate) if call.gate else None)


# --- Blackwell: a CuTe-DSL kernel ----------------------------------------------------------


def compile_blackwell(call: PrefillCall, multiprocessors: int, file: Path, name: str) -> None:
    """Compile the kernel of `call` without a GPU and write it to `file` as the function `name`.

    FlashInfer's own adapter is called with memory of the right shapes that says it is a GPU's;
    what it compiled is taken from its cache, and the call itself fails for want of a GPU.
    """
    import torch
    from flashinfer.gdn_kernels.blackwell import gdn_prefill as adapter

    tensors = _tensors(call)
    with _on_a_gpu(adapter, multiprocessors):
        try:
            adapter.chunk_gated_delta_rule_sm100(**tensors, scale=call.head_dim**-0.5)
        except ValueError as error:
            if "expected device_type=cuda" not in str(error):
                raise
    key = (
        str(tensors["q"].dtype),
        str(torch.float32 if call.state_dtype == "fp32" else torch.bfloat16),
        call.query_heads,
        call.value_heads,
        not call.grouped,
        call.initial_state,
        call.final_state,
        call.checkpoints,
    )
    compiled = adapter._get_compiled_cache(*key)["compiled"]
    compiled.export_to_c(object_file_path=str(file), function_name=name)


def _tensors(call: PrefillCall) -> dict[str, Any]:
    """Return arguments of the shapes that vLLM's own warm-up calls with: one chunk."""
    import torch

    tokens, dim = 64, call.head_dim
    like = torch.bfloat16 if call.dtype == "bf16" else torch.float16
    state = torch.float32 if call.state_dtype == "fp32" else torch.bfloat16
    heads = max(call.query_heads, call.value_heads)

    def states() -> torch.Tensor:
        return torch.empty(1, heads, dim, dim, dtype=state)

    keys = call.query_heads if call.grouped else call.value_heads
    return {
        "q": torch.empty(tokens, call.query_heads, dim, dtype=like),
        "k": torch.empty(tokens, keys, dim, dtype=like),
        "v": torch.empty(tokens, call.value_heads, dim, dtype=like),
        "gate": torch.empty(tokens, heads),
        "beta": torch.empty(tokens, heads),
        "output": torch.empty(tokens, heads, dim, dtype=like),
        "cu_seqlens": torch.tensor([0, tokens], dtype=torch.int32),
        "initial_state": states() if call.initial_state else None,
        "output_state": states() if call.final_state else None,
        **(_checkpoints(states, tokens) if call.checkpoints else {}),
    }


def _checkpoints(states: Callable[[], Any], tokens: int) -> dict[str, Any]:
    import torch

    return {
        "checkpoint_every_n_tokens": tokens,
        "cu_checkpoints": torch.tensor([0, 1], dtype=torch.int32),
        "output_checkpoints": states(),
    }


@contextmanager
def _on_a_gpu(adapter: Any, multiprocessors: int) -> Iterator[None]:
    """Let what `adapter` asks a GPU be answered, and memory say it is a GPU's, in the block."""
    import torch

    replaced: tuple[tuple[Any, str, Any], ...] = (
        (adapter, "get_num_sm", lambda _: multiprocessors),
        (adapter, "from_dlpack", _of_a_gpu(adapter.from_dlpack)),
        (torch.cuda, "current_stream", lambda *_, **__: SimpleNamespace(cuda_stream=0)),
    )
    kept = [(where, name, getattr(where, name)) for where, name, _ in replaced]
    try:
        for where, name, ours in replaced:
            setattr(where, name, ours)
        yield
    finally:
        for where, name, theirs in kept:
            setattr(where, name, theirs)


def _of_a_gpu(from_dlpack: Callable[..., Any]) -> Callable[..., Any]:
    def take(tensor: Any, **keywords: Any) -> Any:
        return from_dlpack(_GpuMemory(tensor), **keywords)

    return take


class _GpuMemory:
    """A tensor whose DLPack form says CUDA: kernels read global memory, not just any."""

    def __init__(self, tensor: Any) -> None:
        self.tensor = tensor

    def __dlpack_device__(self) -> tuple[int, int]:
        return DLPACK_CUDA, 0

    def __dlpack__(self, **_: Any) -> Any:
        capsule = self.tensor.__dlpack__()
        pointer = ctypes.pythonapi.PyCapsule_GetPointer
        pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
        address = pointer(capsule, b"dltensor")
        # A DLTensor begins with its data's address and then its device.
        ctypes.c_int32.from_address(address + ctypes.sizeof(ctypes.c_void_p)).value = DLPACK_CUDA
        return capsule
