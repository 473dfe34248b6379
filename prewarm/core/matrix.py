"""The matrix: every deployment of a fleet, listed or as products of models, GPUs and arguments."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

from prewarm.core.errors import InputError
from prewarm.core.record import Record
from prewarm.core.target import target_named

SCHEMA = "prewarm/matrix/v1"

_NAME = re.compile(r"[a-z0-9]+(?:[._-][a-z0-9]+)*")
_LONGEST_NAME = 128
_TENSOR_PARALLEL = "--tensor-parallel-size"


class PinnedModel(Record, kw_only=True):
    """A model of the hub at one of its commits."""

    model: str
    revision: str


class Product(Record, kw_only=True):
    """Deployments that are every combination of what is listed."""

    models: tuple[str | PinnedModel, ...]
    """Hub ids or directories, as `vllm serve` takes them."""
    targets: tuple[str, ...]
    tensor_parallel: tuple[int, ...] = ()
    """Sizes of tensor parallelism; empty leaves it to the serve arguments."""
    serve_args: str = ""
    """What all of them are served with besides, as in a shell."""
    variants: dict[str, str] = {}
    """Name to what is served with on top of that: one deployment for each, or one with none."""
    tunings: tuple[str, ...] = ()
    """Files, relative to the matrix; each deployment takes those of its GPU and its tuning keys."""
    all_candidates: bool = False
    one_winner: bool = False
    flashinfer: bool = False
    """Whether images hold FlashInfer's library too, where the deployment calls one."""
    vllm: tuple[str, ...] = ()
    """Releases of vLLM that it is for; empty: whichever is there."""


class Single(Record, kw_only=True):
    """One deployment."""

    name: str
    serve: str
    """What stands behind `vllm serve`: the model, then its arguments, as in a shell."""
    target: str
    tunings: tuple[str, ...] = ()
    all_candidates: bool = False
    one_winner: bool = False
    flashinfer: bool = False
    vllm: tuple[str, ...] = ()


class Matrix(Record, kw_only=True):
    """A fleet as its users write it down."""

    schema: str = SCHEMA
    products: tuple[Product, ...] = ()
    deployments: tuple[Single, ...] = ()


class Wanted(Record, kw_only=True):
    """One deployment of the fleet."""

    name: str
    """Of its image, lower case."""
    serve_args: tuple[str, ...]
    """The model first."""
    target: str
    tunings: tuple[str, ...] = ()
    """Files, relative to the matrix."""
    all_candidates: bool = False
    one_winner: bool = False
    flashinfer: bool = False
    vllm: tuple[str, ...] = ()

    def is_for(self, vllm: str) -> bool:
        """Return whether it is to be built with release `vllm`, which may have a local part."""
        return not self.vllm or vllm.partition("+")[0] in self.vllm


def deployments_of(matrix: Matrix, where: str) -> tuple[Wanted, ...]:
    """Return every deployment of `matrix` in the order of their names.

    Raises InputError, naming the field in the document `where`, for an unknown target, a name
    that no directory can have, arguments that no shell could read, and where two deployments
    have one name or there is none.
    """
    found: dict[str, str] = {}
    every: list[Wanted] = []
    for path, wanted in _every(matrix, where):
        if other := found.get(wanted.name):
            raise InputError(
                f"{where}: two deployments are called {wanted.name} - at `{other}` and `{path}`",
                "tell them apart by a name of their own or by the name of a variant",
            )
        found[wanted.name] = path
        every.append(wanted)
    if not every:
        raise InputError(f"{where}: it names no deployment", "products: or deployments:")
    return tuple(sorted(every, key=lambda wanted: wanted.name))


def _every(matrix: Matrix, where: str) -> Iterator[tuple[str, Wanted]]:
    """Yield each deployment behind the path of what it comes from."""
    for i, product in enumerate(matrix.products):
        path = f"$.products[{i}]"
        for wanted in _combinations(product, where, path):
            yield path, wanted
    for i, single in enumerate(matrix.deployments):
        path = f"$.deployments[{i}]"
        yield path, _single(single, where, path)


def _single(single: Single, where: str, path: str) -> Wanted:
    _check_name(single.name, where, f"{path}.name")
    _check_target(single.target, where, f"{path}.target")
    serve_args = _arguments(single.serve, where, f"{path}.serve")
    if not serve_args or serve_args[0].startswith("-"):
        raise InputError(f"{where}: the model must stand first - at `{path}.serve`")
    return Wanted(
        name=single.name,
        serve_args=serve_args,
        target=single.target,
        tunings=single.tunings,
        all_candidates=single.all_candidates,
        one_winner=single.one_winner,
        flashinfer=single.flashinfer,
        vllm=single.vllm,
    )


def _combinations(product: Product, where: str, path: str) -> Iterator[Wanted]:
    _check_axes(product, where, path)
    common = _arguments(product.serve_args, where, f"{path}.serve_args")
    variants = {
        name: _arguments(text, where, f"{path}.variants[{name!r}]")
        for name, text in product.variants.items()
    }
    for k, model in enumerate(product.models):
        name, pinned = _model(model)
        for size in product.tensor_parallel or (None,):
            for target in product.targets:
                for variant, more in (variants or {"": ()}).items():
                    parallel = () if size is None else (_TENSOR_PARALLEL, str(size))
                    short = name.rstrip("/").rpartition("/")[2]
                    parts = (short, "" if size is None else f"tp{size}", target, variant)
                    wanted = Wanted(
                        name="-".join(filter(None, parts)).lower(),
                        serve_args=(name, *pinned, *parallel, *common, *more),
                        target=target,
                        tunings=product.tunings,
                        all_candidates=product.all_candidates,
                        one_winner=product.one_winner,
                        flashinfer=product.flashinfer,
                        vllm=product.vllm,
                    )
                    _check_name(wanted.name, where, f"{path}.models[{k}]")
                    yield wanted


def _model(model: str | PinnedModel) -> tuple[str, tuple[str, ...]]:
    """Return a model as `vllm serve` takes it, and the arguments that pin it."""
    if isinstance(model, str):
        return model, ()
    return model.model, ("--revision", model.revision)


def _check_axes(product: Product, where: str, path: str) -> None:
    for axis in ("models", "targets"):
        if not getattr(product, axis):
            raise InputError(f"{where}: the list is empty - at `{path}.{axis}`")
    for i, size in enumerate(product.tensor_parallel):
        if size < 1:
            raise InputError(
                f"{where}: tensor parallelism is 1 or more, not {size}"
                f" - at `{path}.tensor_parallel[{i}]`"
            )
    for i, target in enumerate(product.targets):
        _check_target(target, where, f"{path}.targets[{i}]")


def _check_target(name: str, where: str, path: str) -> None:
    try:
        target_named(name)
    except InputError as error:
        raise InputError(
            f"{where}: {error.message} - at `{path}`", "prewarm show targets"
        ) from error


def _check_name(name: str, where: str, path: str) -> None:
    if not _NAME.fullmatch(name) or len(name) > _LONGEST_NAME:
        raise InputError(
            f"{where}: {name!r} cannot name an image: lower-case letters, digits, and single"
            f" '.', '_' or '-' between them, {_LONGEST_NAME} at most - at `{path}`"
        )


def _arguments(text: str, where: str, path: str) -> tuple[str, ...]:
    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        raise InputError(f"{where}: {text!r}: {error} - at `{path}`") from error
