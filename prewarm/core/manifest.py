"""The manifest: every Triton launch that one deployment makes, and what it was found with."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
from msgspec import UNSET, UnsetType

from prewarm.core.digest import canonical_json, digest_of
from prewarm.core.flashinfer import SHIPPED, PrefillCall
from prewarm.core.record import Record
from prewarm.core.toolchain import Toolchain

SCHEMA = "prewarm/manifest/v1"

START_UP = "start-up"
GRAPH_CAPTURE = "graph capture"
BEFORE_SERVING = frozenset({START_UP, GRAPH_CAPTURE})
"""What `via` calls work before the first request; any other is a kind of workload."""

Constexpr = bool | int | float | str | dict[str, str] | None
"""A compile-time value; `{dtype: bf16}` is a Triton dtype, `{function: m:f}` a jit function."""


class Argument(Record, kw_only=True):
    """One argument of a launch as Triton specializes it."""

    type: str
    """Triton's signature type: `*bf16`, `i32`, `constexpr`."""
    value: Constexpr | UnsetType = UNSET
    """The compile-time value; only and always there when the type is `constexpr` and bound."""
    divisible_by_16: bool = False
    equal_to_1: bool = False
    """A run-time integer that was 1, so that Triton made it a constexpr."""
    by_candidate: bool = False
    """The value is that of the autotuner's candidate."""
    unbound: bool = False
    """The value is known only at deploy time: see the manifest's `unbound`."""
    seen: str | None = None
    """Shape and strides of the first tensor, or the first value, that was seen here."""

    def identity(self) -> dict[str, object]:
        """Return what Triton's key depends on: everything but `seen`."""
        plain: dict[str, object] = msgspec.to_builtins(self)
        plain.pop("seen", None)
        return plain


class Candidate(Record, kw_only=True):
    """One configuration that an autotuner may pick."""

    constexprs: dict[str, Constexpr] = {}
    num_warps: int
    num_stages: int
    num_ctas: int = 1
    maxnreg: int | None = None

    def options(self) -> dict[str, Constexpr]:
        """Return the compile options of this candidate."""
        options: dict[str, Constexpr] = {
            "num_warps": self.num_warps,
            "num_stages": self.num_stages,
            "num_ctas": self.num_ctas,
        }
        return options if self.maxnreg is None else {**options, "maxnreg": self.maxnreg}


class Specialization(Record, kw_only=True):
    """One way in which a kernel is asked for; with an autotuned kernel, once per candidate."""

    arguments: dict[str, Argument]
    """By name, in the kernel's order."""
    options: dict[str, Constexpr] = {}
    """Compile options of a kernel that is not autotuned: `num_warps`, `num_stages`."""
    tuning_key: dict[str, Constexpr] = {}
    """Name to value of the autotuner's key, then `dtype of NAME` to dtype of each tensor."""
    candidates: tuple[int, ...] | None = None
    """Indexes into the kernel's candidates after pruning; None where there is no autotuner."""
    via: tuple[str, ...]
    """The workloads that reach it."""


class Kernel(Record, kw_only=True):
    """One Triton kernel of vLLM."""

    name: str
    """`module:function`, importable."""
    source: str
    """Digest of Triton's key of the function: source, first line, globals and callees."""
    tuned_by: tuple[str, ...] | None = None
    """Argument names of the autotuner's key; None where there is no autotuner."""
    candidates: tuple[Candidate, ...] = ()
    specializations: tuple[Specialization, ...]


class Launch(Record, kw_only=True):
    """One compile: a kernel with all its arguments and options settled."""

    kernel: str
    source: str
    arguments: dict[str, Argument]
    options: dict[str, Constexpr]

    @property
    def unbound(self) -> tuple[str, ...]:
        """The arguments whose value is known only at deploy time."""
        return tuple(name for name, argument in self.arguments.items() if argument.unbound)

    @property
    def digest(self) -> str:
        """Identity of the launch, whatever tensors it was first seen with."""
        return digest_of(
            canonical_json(
                {
                    "kernel": self.kernel,
                    "source": self.source,
                    "arguments": [[n, a.identity()] for n, a in self.arguments.items()],
                    "options": self.options,
                }
            )
        )


class Model(Record, kw_only=True):
    """The model whose config was traced."""

    name: str
    """Hub id, or the name of the local directory."""
    revision: str | None = None
    """Commit of the hub repository; None for a local directory."""
    config: str
    """Digest of config.json."""


class Deployment(Record, kw_only=True):
    """What the user asked for."""

    model: Model
    serve_args: tuple[str, ...]
    """Arguments of `vllm serve`, the model first, as given."""
    target: str


class Trace(Record, kw_only=True):
    """How much was tried before the manifest was called complete."""

    workloads: int
    """Boundary workloads."""
    random_workloads: int
    closure: int
    """How many random workloads in a row had to show nothing new."""
    seed: int
    steps: int
    """Scheduler steps of them all."""
    gpu_blocks: tuple[int, ...]
    """Numbers of GPU blocks traced at; the first is the deployment's."""


class Unbound(Record, kw_only=True):
    """An argument whose value is known only at deploy time."""

    argument: str
    kernels: tuple[str, ...]
    follows: str
    """What its value depends on: `number of GPU blocks`."""
    seen: dict[str, Constexpr]
    """Number of GPU blocks to the value that was seen with it."""
    pin: str
    """The serve argument that settles it."""


class Elsewhere(Record, kw_only=True):
    """GDN work that this deployment does outside Triton."""

    name: str
    backend: str
    reason: str
    """Why vLLM takes it."""
    needs: str
    present: str
    """What this image has of it already."""
    cold: str
    """What a cold start costs, and where that was measured."""
    instances: tuple[str, ...] = ()
    """What this deployment asks of it, of all that it holds; empty where that is not known."""
    calls: tuple[PrefillCall, ...] = ()
    """How FlashInfer was called while tracing."""
    spared: bool = False
    """Whether this image has all of it, so that nothing is compiled when serving starts."""

    @property
    def is_to_ship(self) -> bool:
        """Whether a cache can spare what it costs: by a library that this image lacks."""
        return self.name in SHIPPED and not self.spared


class Manifest(Record, kw_only=True):
    """Every Triton launch of one deployment on one target with one toolchain."""

    schema: str = SCHEMA
    deployment: Deployment
    toolchain: Toolchain
    geometry: dict[str, Constexpr]
    trace: Trace
    unbound: tuple[Unbound, ...] = ()
    elsewhere: tuple[Elsewhere, ...] = ()
    kernels: tuple[Kernel, ...]

    @property
    def digest(self) -> str:
        """Identity of the document: comments and layout never change it."""
        return digest_of(canonical_json({"schema": self.schema, **msgspec.to_builtins(self)}))

    def launches(self) -> Iterator[Launch]:
        """Yield every launch once, kernel by kernel, candidate by candidate."""
        seen: set[str] = set()
        for kernel in self.kernels:
            for specialization in kernel.specializations:
                for launch in launches_of(kernel, specialization):
                    if launch.digest not in seen:
                        seen.add(launch.digest)
                        yield launch


def launches_of(kernel: Kernel, specialization: Specialization) -> Iterator[Launch]:
    """Yield the launch of `specialization`, or one per candidate of an autotuned kernel."""
    if specialization.candidates is None:
        yield Launch(
            kernel=kernel.name,
            source=kernel.source,
            arguments=specialization.arguments,
            options=specialization.options,
        )
        return
    for index in specialization.candidates:
        yield launch_with(kernel, specialization, kernel.candidates[index])


def launch_with(kernel: Kernel, specialization: Specialization, config: Candidate) -> Launch:
    """Return the launch of an autotuned `specialization` with `config`, be it listed or not."""
    arguments = {
        name: Argument(type="constexpr", value=config.constexprs[name])
        if argument.by_candidate
        else argument
        for name, argument in specialization.arguments.items()
    }
    return Launch(
        kernel=kernel.name,
        source=kernel.source,
        arguments=arguments,
        options={**specialization.options, **config.options()},
    )
