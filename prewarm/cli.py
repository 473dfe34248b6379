"""argv -> one call -> one rendering -> exit code.

With `verbs` and `render` the only module that knows more than one room. Rooms are imported by
the verb that needs them, so that `install` never loads torch.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

import prewarm
from prewarm.core.search_space import MOST
from prewarm.core.target import Target, target_named, targets
from prewarm.output import Output, ReaderGoneError

_DONE, _FINDINGS, _INTERRUPTED, _READER_GONE = 0, 1, 130, 141
_NO_SERVE_ARGS = "put the model and the other arguments of vllm serve after --"

F = TypeVar("F", bound=Callable[..., Any])


class ServeVerb(click.Command):
    """A verb whose arguments after `--` are those of `vllm serve`."""

    needs_serve_args = True

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse what stands before `--`, and pass on what stands behind it untouched."""
        ours, theirs = _split(args)
        ctx.allow_extra_args = True
        rest = super().parse_args(ctx, ours)
        if theirs[:2] == ["vllm", "serve"]:
            theirs = theirs[2:]
        if rest or (self.needs_serve_args and not theirs):
            raise click.UsageError(_NO_SERVE_ARGS, ctx)
        ctx.params["serve_args"] = tuple(theirs)
        return rest

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        """Return the pieces of the usage line."""
        return [*super().collect_usage_pieces(ctx), "-- MODEL [SERVE ARGS]"]


class MaybeServeVerb(ServeVerb):
    """A verb that can do without them."""

    needs_serve_args = False

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        """Return the pieces of the usage line."""
        return [*click.Command.collect_usage_pieces(self, ctx), "[-- MODEL [SERVE ARGS]]"]


def _split(args: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return what stands before the first `--`, and what stands behind it."""
    at = list(args).index("--") if "--" in args else len(args)
    return list(args[:at]), list(args[at + 1 :])


def _manners(command: F) -> F:
    """Add the options that every verb has."""

    def keep(name: str, value: object) -> Callable[..., None]:
        def callback(ctx: click.Context, _: click.Parameter, given: bool) -> None:
            if given:
                setattr(ctx.obj, name, value)

        return callback

    flags = (
        ("--json", "as_json", True, "JSON: the result on stdout, an error on stderr."),
        ("--quiet", "verbosity", -1, "Only the result and errors."),
        ("--verbose", "verbosity", 1, "Every step."),
        ("--debug", "debug", True, "A traceback with an error."),
    )
    for flag, name, value, text in reversed(flags):
        names = [flag, flag[1:3]] if name == "verbosity" else [flag]
        command = click.option(
            *names, is_flag=True, expose_value=False, callback=keep(name, value), help=text
        )(command)
    return command


def _target(_: click.Context, __: click.Parameter, name: str) -> Target:
    return target_named(name)


def _maybe_target(_: click.Context, __: click.Parameter, name: str | None) -> Target | None:
    return None if name is None else target_named(name)


def _options(*options: Callable[[F], F]) -> Callable[[F], F]:
    def add(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return add


_PATH = click.Path(path_type=Path)
_TARGET = click.option(
    "--target", required=True, callback=_target, metavar="NAME", help="GPU to build for: b200."
)
_CLOSURE = _options(
    click.option(
        "--closure",
        type=click.IntRange(min=0),
        default=50,
        show_default=True,
        help="Random workloads in a row that must show nothing new.",
    ),
    click.option(
        "--seed", type=int, default=0, show_default=True, help="Seed of all that is random."
    ),
)
_TRACING = _options(_TARGET, _CLOSURE)
_CACHE_DIR = click.option(
    "--cache-dir", type=_PATH, required=True, help="Directory that launches are compiled into."
)
_JOBS = click.option(
    "-j",
    "--jobs",
    type=click.IntRange(min=1),
    default=None,
    help="Compiles at a time.  [default: the CPUs this process may use]",
)
_TUNINGS = _options(
    click.option(
        "--tunings",
        type=_PATH,
        multiple=True,
        metavar="FILE",
        help="Compile the winners in FILE only, and write Triton's autotune records of them.",
    ),
    click.option(
        "--all-candidates", is_flag=True, help="With --tunings, compile all candidates besides."
    ),
    click.option(
        "--one-winner",
        is_flag=True,
        help="With --tunings, leave out winners of single sizes: a smaller layer.",
    ),
    click.option(
        "--tunings-of-another-gpu",
        "other_gpu",
        is_flag=True,
        help="Take --tunings that were measured on another GPU than the target, and mark them.",
    ),
)
_FLASHINFER = click.option(
    "--flashinfer",
    type=_PATH,
    metavar="DIR",
    help="Build what FlashInfer would compile at first use into DIR, and keep what is there.",
)
_MOUNT_PATH = click.option(
    "--mount-path",
    metavar="DIR",
    help="Where the image's root will be mounted or copied; then no install is needed.",
)
_FLEET = _options(
    click.option(
        "--matrix", type=_PATH, metavar="FILE", help="Build all deployments that FILE names."
    ),
    click.option(
        "--shard",
        metavar="K/N",
        help="Compile part K of N only; job/N: K is this pod's in its Indexed Job.",
    ),
    click.option(
        "--plans",
        type=_PATH,
        metavar="DIR",
        help="Keep manifests in DIR, and use those that are there.  [default: OUT/plans]",
    ),
    click.option("--plans-only", is_flag=True, help="Fill --plans and stop."),
)
_OF_A_FLEET = ("shard", "plans", "plans_only")
_OF_ONE = (
    "target",
    "tunings",
    "all_candidates",
    "one_winner",
    "other_gpu",
    "cache_dir",
    "flashinfer",
    "keep_manifest",
)
_REGISTRY = _options(
    click.option("--plain-http", is_flag=True, help="Reach the registry without TLS."),
    click.option(
        "--ca-file",
        metavar="PEM",
        help="Certificates to trust.  [default: SSL_CERT_FILE, REQUESTS_CA_BUNDLE]",
    ),
)
_POLICY = _options(
    *(
        click.option(
            option,
            type=click.Choice(["fail", "warn"]),
            help=f"{what}: exit {codes}, or install nothing and exit 0.  [default: fail]",
        )
        for option, what, codes in (
            ("--on-mismatch", "For a cache that is for another host", "8"),
            ("--on-unsound", "For one with a wrong digest or signature", "7"),
            ("--on-unavailable", "Where it cannot be had or written now", "4, 9 or 75"),
        )
    ),
    click.option(
        "--init-container",
        is_flag=True,
        help="A pod waits: warn is the default of all three, and the last words go to Kubernetes.",
    ),
    click.option(
        "--termination-log",
        type=_PATH,
        metavar="FILE",
        help="Write there why nothing was installed.  [default with --init-container:"
        " /dev/termination-log, if it is there]",
    ),
)
_TRUST = _options(
    click.option(
        "--key", type=_PATH, metavar="PEM", help="Public key that must have signed the image."
    ),
    click.option(
        "--identity", metavar="REPOSITORY", help="With --key: what it must have been signed as."
    ),
)
_WANT = click.option(
    "--want",
    multiple=True,
    metavar="FACT=VALUE",
    help="Of an index, what the image must be for: arch=sm_90, vllm=0.25.1, target=b200.",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(prewarm.__version__, prog_name="prewarm", message="%(prog)s %(version)s")
@_manners
def cli() -> None:
    """Make container layers in which vLLM's GDN Triton kernels are already compiled.

    Arguments after -- are those of `vllm serve`.
    """


@cli.command(cls=MaybeServeVerb)
@click.option("--target", callback=_maybe_target, metavar="NAME", help="GPU to plan for: b200.")
@_CLOSURE
@click.option("-o", "--output", type=_PATH, metavar="FILE", help="Write the manifest there.")
@click.option("--check", type=_PATH, metavar="FILE", help="Exit 1 if FILE would change.")
@click.option(
    "--matrix",
    type=_PATH,
    metavar="FILE",
    help="Plan every deployment that FILE names; -o and --check take a directory then.",
)
@_manners
@click.pass_context
def plan(
    ctx: click.Context,
    /,
    output: Path | None,
    check: Path | None,
    matrix: Path | None,
    **asked: Any,
) -> int:
    """Trace a deployment and write its manifest.

    Without -o the manifest goes to stdout.
    """
    from prewarm import verbs
    from prewarm.core.manifest_yaml import render_manifest, write_manifest

    out: Output = ctx.obj
    _check_matrix(ctx)
    if matrix is not None:
        return _plan_matrix(ctx, out, matrix, output, check)
    found = verbs.trace(out, **asked)
    if check is not None:
        return verbs.check(out, check, found)
    if output is None:
        out.product(render_manifest(found), found)
        return _DONE
    write_manifest(output, found)
    out.product(str(output), {"path": str(output), "digest": found.digest})
    return _DONE


def _plan_matrix(
    ctx: click.Context, out: Output, matrix: Path, output: Path | None, check: Path | None
) -> int:
    from prewarm import fleet

    tracing = fleet.Tracing(closure=ctx.params["closure"], seed=ctx.params["seed"])
    if check is not None:
        return fleet.check_all(out, matrix, check, tracing)
    if output is None:
        raise click.UsageError("the manifests of a matrix need a directory: -o DIR", ctx)
    return fleet.plan_all(out, matrix, output, tracing)


@cli.command(name="compile")
@click.argument("manifest", type=_PATH)
@_CACHE_DIR
@_JOBS
@_TUNINGS
@_FLASHINFER
@_manners
@click.pass_obj
def compile_(
    out: Output,
    /,
    manifest: Path,
    cache_dir: Path,
    jobs: int | None,
    flashinfer: Path | None,
    **how: Any,
) -> int:
    """Compile every launch of a manifest, without a GPU.

    With tunings, the winners only. GDN prefill that is FlashInfer's is no launch of Triton's: it
    is built with --flashinfer.
    """
    from prewarm import verbs
    from prewarm.core.manifest_yaml import read_manifest

    found, files = read_manifest(manifest), how.pop("tunings")
    selection = verbs.select(out, found, verbs.read_tunings(files, **how), **how)
    counts = verbs.compile_launches(out, found, cache_dir, jobs, selection)
    counts |= verbs.build_flashinfer(out, found, flashinfer, jobs)
    verbs.say_first_start(out, found, selection)
    out.product(", ".join(f"{count} {kind}" for kind, count in counts.items()), counts)
    return _DONE


@cli.command()
@click.argument("manifest", type=_PATH)
@_CACHE_DIR
@click.option("-o", "--output", type=_PATH, required=True, help="OCI image layout to write.")
@_MOUNT_PATH
@click.option(
    "--flashinfer",
    type=_PATH,
    metavar="DIR",
    help="Pack what `compile --flashinfer DIR` built as well.",
)
@_manners
@click.pass_obj
def pack(out: Output, /, manifest: Path, cache_dir: Path, output: Path, **how: Any) -> int:
    """Pack what was compiled into a reproducible image."""
    from prewarm import verbs
    from prewarm.core.manifest_yaml import read_manifest

    return verbs.pack(out, read_manifest(manifest), cache_dir, output, **how)


@cli.command()
@click.argument("manifest", type=_PATH)
@click.option("-o", "--output", type=_PATH, metavar="FILE", help="Write the tunings there.")
@click.option("--gpus", metavar="LIST", help="Indexes or UUIDs: 0,1.  [default: all]")
@click.option(
    "--sizes",
    metavar="LIST",
    help="Prefill sizes, TOKENS[xSEQUENCES][=WEIGHT]: 2048,8192x8=2.  [default: 64 to the budget]",
)
@click.option(
    "--search",
    type=click.IntRange(min=0),
    default=MOST,
    show_default=True,
    help="Most configs beyond its own list to try of each kernel.",
)
@click.option("--model", metavar="DIR", help="Where the model is, if not where it was planned.")
@click.option(
    "--work",
    type=_PATH,
    metavar="DIR",
    help="Keep captured steps and compiled configs in DIR, and use those that are there.",
)
@click.option("--prepare-only", is_flag=True, help="Fill --work and stop: that needs no GPU.")
@click.option(
    "--flashinfer",
    type=_PATH,
    metavar="DIR",
    help="Measure what `compile --flashinfer DIR` built beside Triton, and say which is faster.",
)
@_JOBS
@_manners
@click.pass_obj
def tune(out: Output, /, manifest: Path, output: Path | None, **asked: Any) -> int:
    """Measure every config of the autotuned kernels on the GPUs of this machine.

    Run it where the GPU is, in the image that will serve. Nothing is served: the prefill steps
    of the deployment are captured without the GPU, and their kernels replayed on it.
    """
    from prewarm import verbs
    from prewarm.core.manifest_yaml import read_manifest

    return verbs.tune(out, read_manifest(manifest), output, **asked)


@cli.command(cls=MaybeServeVerb)
@click.option("--target", callback=_maybe_target, metavar="NAME", help="GPU to build for: b200.")
@_CLOSURE
@click.option("-o", "--output", type=_PATH, help="Image to write.  [default: MODEL-TARGET]")
@_JOBS
@_TUNINGS
@click.option("--cache-dir", type=_PATH, help="Directory to compile into.  [default: per user]")
@_FLASHINFER
@_MOUNT_PATH
@click.option("--keep-manifest", type=_PATH, metavar="FILE", help="Write the manifest there too.")
@_FLEET
@_manners
@click.pass_context
def build(
    ctx: click.Context, /, output: Path | None, matrix: Path | None, jobs: int | None, **asked: Any
) -> int:
    """Plan, compile and pack in one go.

    With --matrix that is a fleet of deployments: a launch is compiled once, however many ask for
    it, and shards share the work. `prewarm gather` makes the images of shards.
    """
    from prewarm import verbs
    from prewarm.core.manifest_yaml import write_manifest

    out: Output = ctx.obj
    part, plans, plans_only = (asked.pop(name) for name in _OF_A_FLEET)
    _check_fleet(ctx)
    if matrix is not None:
        from prewarm import fleet

        assert output is not None
        return fleet.build(
            out,
            matrix,
            output,
            part=fleet.part_named(part),
            plans=plans,
            plans_only=plans_only,
            jobs=jobs,
            mount_path=asked["mount_path"],
            tracing=fleet.Tracing(closure=asked["closure"], seed=asked["seed"]),
        )
    cache_dir, mount_path, keep, files, flashinfer = (
        asked.pop(n) for n in ("cache_dir", "mount_path", "keep_manifest", "tunings", "flashinfer")
    )
    how = {name: asked.pop(name) for name in ("all_candidates", "one_winner", "other_gpu")}
    verbs.check_output(output)
    tunings = verbs.read_tunings(files, **how)
    found = verbs.trace(out, **asked)
    if keep is not None:
        write_manifest(keep, found)
    cache_dir = cache_dir or verbs.default_cache_dir(found)
    selection = verbs.select(out, found, tunings, **how)
    verbs.compile_launches(out, found, cache_dir, jobs, selection)
    built = verbs.build_flashinfer(out, found, flashinfer, jobs, to_pack=True)
    return verbs.pack(
        out,
        found,
        cache_dir,
        output or verbs.default_output(found),
        mount_path,
        flashinfer=flashinfer if built else None,
    )


def _check_fleet(ctx: click.Context) -> None:
    """Raise UsageError where options of `build` do not go together."""
    given = _check_matrix(ctx)
    if "matrix" not in given:
        return
    if "output" not in given:
        raise click.UsageError("a fleet needs a directory: -o OUT", ctx)
    if "mount_path" in given and ("shard" in given or "plans_only" in given):
        raise click.UsageError("--mount-path belongs to the images: give it to gather", ctx)


def _check_matrix(ctx: click.Context) -> dict[str, str]:
    """Return the options that were given; raise UsageError for those of one and of a fleet."""
    given = {
        option.name: option.opts[-1]
        for option in ctx.command.params
        if ctx.get_parameter_source(str(option.name)) is ParameterSource.COMMANDLINE
    }
    if "matrix" not in given:
        if alone := [given[name] for name in _OF_A_FLEET if name in given]:
            raise click.UsageError(f"{alone[0]} belongs to a fleet: it needs --matrix", ctx)
        if "target" not in given:
            raise click.UsageError("Missing option '--target'.", ctx)
        if not ctx.params["serve_args"]:
            raise click.UsageError(_NO_SERVE_ARGS, ctx)
        return given
    if ctx.params["serve_args"]:
        raise click.UsageError("the matrix names the deployments: put nothing after --", ctx)
    if alone := [given[name] for name in _OF_ONE if name in given]:
        raise click.UsageError(f"with --matrix, {alone[0]} has no place: see docs/fleet.md", ctx)
    return given


@cli.command()
@click.argument("shards", type=_PATH, nargs=-1, metavar="[SHARD...]")
@click.option(
    "-o", "--output", type=_PATH, required=True, metavar="DIR", help="Write images to DIR/images."
)
@_MOUNT_PATH
@click.option("--index", metavar="TAG", help="Write their index to DIR/index, under that tag.")
@click.option(
    "--push", "repository", metavar="REPOSITORY", help="Push the images, then that index."
)
@click.option(
    "--run",
    metavar="NAME",
    help="Gather only if --shard, of those in DIR, is the last of this run to finish.",
)
@click.option("--shard", metavar="K/N", help="The shard that has finished; job/N: this pod's.")
@_REGISTRY
@_manners
@click.pass_context
def gather(ctx: click.Context, /, shards: tuple[Path, ...], output: Path, **asked: Any) -> int:
    """Make the image of each deployment of a fleet from all shards of its build.

    Shards that are not of one fleet, that hold other content under one key, or that do not
    hold everything, are refused. Needs no vLLM, torch or Triton.
    """
    from prewarm import fleet, gathering

    mount_path, index, repository, run, shard = (
        asked.pop(n) for n in ("mount_path", "index", "repository", "run", "shard")
    )
    if repository is not None and index is None:
        raise click.UsageError("--push needs the tag of the index: --index TAG", ctx)
    if (run is None) != (shard is None) or (run is not None and index is None):
        raise click.UsageError("--run, --shard and --index go together", ctx)
    if bool(shards) == (run is not None):
        raise click.UsageError("name the SHARDs, or the --run that those in DIR are of", ctx)
    wanted = index and gathering.IndexWanted(tag=index, repository=repository, reach=asked)
    part = fleet.part_named(shard)
    if part is None:
        return gathering.gather(ctx.obj, shards, output, mount_path, wanted)
    return gathering.gather_run(ctx.obj, run, part, output, mount_path=mount_path, wanted=wanted)


@cli.command()
@click.argument("layout", type=_PATH, metavar="OUT")
@click.argument("reference", metavar="REF")
@click.option("--index", metavar="TAG", help="Add the image to the index of that tag.")
@click.option(
    "--mount-from", metavar="REPOSITORY", help="Of the same registry: take blobs from there."
)
@_REGISTRY
@_manners
@click.pass_obj
def push(out: Output, /, layout: Path, reference: str, **how: Any) -> int:
    """Push an image to a registry, and print its digest with the repository.

    OUT is an image layout. Without a tag in REF the image gets one that says what it is for.
    """
    from prewarm import shipping

    return shipping.push(out, layout, reference, **how)


@cli.command()
@click.argument("base", metavar="BASE")
@click.argument("source")
@click.option("-t", "--to", required=True, metavar="REF", help="The image to make.")
@click.option(
    "--mount-path",
    metavar="DIR",
    help="Where the cache goes.  [default: where it was packed for, else /opt/prewarm]",
)
@click.option(
    "--platform",
    metavar="OS/ARCH",
    help="Which image of an index.  [default: the one that the cache was built for]",
)
@click.option(
    "--override-env",
    is_flag=True,
    help="Where the base sets a variable that the cache needs otherwise, take the cache's.",
)
@_WANT
@_TRUST
@_REGISTRY
@_manners
@click.pass_obj
def append(out: Output, /, base: str, source: str, **how: Any) -> int:
    """Add a cache and its variables to an image in a registry, without downloading that.

    The same as a Dockerfile with COPY --from and ENV. BASE and REF are references or image
    layouts; SOURCE is a layout, the directory at which an image is mounted, or a reference.
    """
    from prewarm import appending

    return appending.append(out, base, source, **how)


@cli.command()
@click.argument("reference", metavar="REF")
@click.argument("layout", type=_PATH, metavar="OUT")
@_WANT
@_TRUST
@_REGISTRY
@_manners
@click.pass_obj
def pull(out: Output, /, reference: str, layout: Path, **how: Any) -> int:
    """Pull an image into a layout, whole or not at all, and print its reference by digest.

    Of an index the image that fits this host is pulled. A pull that was interrupted goes on.
    """
    from prewarm import shipping

    return shipping.pull(out, reference, layout, **how)


@cli.command()
@click.argument("reference", metavar="REF")
@click.option(
    "--key", type=_PATH, required=True, metavar="PEM", help="Private key, ECDSA on P-256."
)
@_REGISTRY
@_manners
@click.pass_obj
def sign(out: Output, /, reference: str, **how: Any) -> int:
    """Sign an image in its registry, in cosign's format; of an index every image in it.

    PREWARM_KEY_PASSWORD opens a key that has a password.
    """
    from prewarm import shipping

    return shipping.sign(out, reference, **how)


@cli.command()
@click.argument("reference", metavar="REF")
@click.option("--key", type=_PATH, metavar="PEM", help="Sign them: private key, ECDSA on P-256.")
@_REGISTRY
@_manners
@click.pass_obj
def attest(out: Output, /, reference: str, **how: Any) -> int:
    """Attach provenance and an SBOM to an image in its registry; of an index to every image.

    PREWARM_KEY_PASSWORD opens a key that has a password.
    """
    from prewarm import shipping

    return shipping.attest(out, reference, **how)


@cli.command(name="list")
@click.argument("repository", metavar="REPOSITORY")
@_REGISTRY
@_manners
@click.pass_obj
def list_(out: Output, /, repository: str, **how: Any) -> int:
    """List the images of a repository, with what each of them is for."""
    from prewarm import shipping

    return shipping.list_(out, repository, **how)


@cli.command()
@click.argument("source")
@click.option("--into", type=_PATH, required=True, metavar="DIR", help="Directory to serve from.")
@_POLICY
@click.option("--print-env", is_flag=True, help="Print the variables that serving needs as well.")
@click.option(
    "--env-format",
    type=click.Choice(["dockerfile", "shell", "kubernetes"]),
    default="dockerfile",
    show_default=True,
    help="How --print-env writes them.",
)
@_WANT
@_TRUST
@_REGISTRY
@_manners
@click.pass_obj
def install(out: Output, /, into: Path, **asked: Any) -> int:
    """Install a cache into a directory, whole or not at all.

    SOURCE is an image layout, the directory at which an image is mounted, or a reference such as
    registry.example/caches@sha256:…; of an index the image that fits this host is installed.
    """
    from prewarm.starting import under_policy

    return under_policy(out, _install, into, asked)


def _install(out: Output, /, source: str, into: Path, on_mismatch: Any, **how: Any) -> int:
    from prewarm import shipping
    from prewarm.ship.environment import environment, render_environment
    from prewarm.ship.install import install as install_

    env = {name: how.pop(name) for name in ("print_env", "env_format")}
    with shipping.fetched(out, source, **how) as layout:
        done = install_(layout, into, on_mismatch=on_mismatch)
    for line in done.decision:
        out.detail(line)
    out.say(f"{done.state}: {done.launches} launches, {done.identity}")
    print_env = env["print_env"]
    variables = environment(done.directory, done.toolchain, done.python) if print_env else ()
    text = render_environment(variables, env["env_format"])
    out.product(f"{done.directory}\n{text}", {"installed": done, "environment": variables})
    return _DONE


@cli.command(cls=MaybeServeVerb)
@click.argument("source", type=_PATH)
@click.option(
    "--target",
    callback=_maybe_target,
    metavar="NAME",
    help="GPU that will serve.  [default: the one that is visible here]",
)
@click.option("--integrity-only", is_flag=True, help="Do not ask Triton whether it will hit.")
@_CLOSURE
@_manners
@click.pass_obj
def verify(
    out: Output,
    /,
    source: Path,
    target: Target | None,
    *,
    integrity_only: bool,
    serve_args: tuple[str, ...],
    **tracing: int,
) -> int:
    """Say what is wrong with a cache, and whether it will hit here; exit 1 if anything is wrong.

    SOURCE is an image layout, the directory at which an image is mounted, or a directory that
    was installed into. Run it in the image that will serve: the toolchain is compared, and
    Triton's own lookup is asked for every launch. With SERVE ARGS that is every launch of this
    deployment, traced here, else of the one that the cache was built for. No GPU is needed.
    """
    from prewarm.verifying import Asked
    from prewarm.verifying import verify as verify_

    asked = Asked(serve_args=serve_args, **tracing) if serve_args else None
    return verify_(out, source, target, fit=not integrity_only, asked=asked)


@cli.command(cls=ServeVerb)
@click.argument("source", type=_PATH)
@click.option("--engine", is_flag=True, help="vLLM's whole engine, with dummy weights.")
@click.option(
    "--layers",
    type=click.IntRange(min=1),
    help="With --engine: the first layers of the model only.  [default: all]",
)
@click.option("--no-cold", is_flag=True, help="Leave out the processes without the cache.")
@click.option(
    "--prompt",
    type=click.IntRange(min=1),
    default=2000,
    show_default=True,
    help="Tokens of the request that is repeated.",
)
@click.option(
    "--repeats",
    type=click.IntRange(min=2),
    default=10,
    show_default=True,
    help="How often it is.",
)
@click.option(
    "--random",
    "random_workloads",
    type=click.IntRange(min=0),
    default=20,
    show_default=True,
    help="Random workloads at the end.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of all that is random.")
@_manners
@click.pass_obj
def prove(
    out: Output,
    /,
    source: Path,
    *,
    engine: bool,
    no_cold: bool,
    serve_args: tuple[str, ...],
    **how: Any,
) -> int:
    """Serve on this GPU without and with an installed cache; exit 1 if it does not hold.

    SOURCE is the directory that a cache was installed into. Fresh processes run start-up and the
    same workloads with an empty cache, a second time, and with SOURCE. It holds when nothing of
    its plan is compiled or autotuned but what is unbound, at start-up, and nothing is asked for
    that was not planned.
    """
    from prewarm.prove.prove import Plan
    from prewarm.proving import prove as prove_

    plan = Plan(depth="engine" if engine else "layer", cold=not no_cold, **how)
    return prove_(out, source, serve_args, plan)


@cli.command(cls=MaybeServeVerb)
@click.argument("manifest", type=_PATH, required=False)
@click.option(
    "--target",
    callback=_maybe_target,
    metavar="NAME",
    help="GPU to audit for: b200.  [default: the manifest's]",
)
@_CLOSURE
@_manners
@click.pass_obj
def audit(out: Output, /, manifest: Path | None, **asked: Any) -> int:
    """Say what vLLM's own start-up leaves to its inference; exit 1 if that is anything.

    That is which launches are compiled, and which autotuned kernels benchmarked, only when the
    first requests come, and in what start-up asked otherwise. MANIFEST, a deployment that was
    planned already, stands in place of SERVE ARGS. No GPU is needed.
    """
    from prewarm import verbs

    return verbs.audit(out, verbs.planned_or_traced(out, manifest, **asked))


@cli.command(cls=MaybeServeVerb)
@click.argument("manifest", type=_PATH, required=False)
@click.option(
    "--target",
    callback=_maybe_target,
    metavar="NAME",
    help="GPU to plan for: b200.  [default: the manifest's]",
)
@click.option(
    "--streams",
    type=click.IntRange(min=1),
    default=50,
    show_default=True,
    help="Random request streams to serve.",
)
@click.option(
    "--steps",
    type=click.IntRange(min=1),
    default=60,
    show_default=True,
    help="Most scheduler steps of a stream.",
)
@click.option("--model", metavar="DIR", help="Where the model is, if not where it was planned.")
@_CLOSURE
@_manners
@click.pass_obj
def check(out: Output, /, manifest: Path | None, **asked: Any) -> int:
    """Check a manifest with random request streams; exit 1 if they ask for what it lacks.

    They go through vLLM's own scheduler and model runner, without a GPU, and share nothing with
    the workloads that the manifest was traced with. What they never ask for is listed as well.
    MANIFEST, a deployment that was planned already, stands in place of SERVE ARGS.
    """
    from prewarm import verbs

    how = {name: asked.pop(name) for name in ("streams", "steps", "model")}
    planned = verbs.planned_or_traced(out, manifest, verb="check", **asked)
    return verbs.check_streams(out, planned, seed=asked["seed"], **how)


@cli.command()
@click.argument("old", type=_PATH)
@click.argument("new", type=_PATH)
@_manners
@click.pass_obj
def diff(out: Output, old: Path, new: Path) -> int:
    """Compare two manifests; exit 1 if they differ."""
    from prewarm import verbs
    from prewarm.core.manifest_yaml import read_manifest

    return verbs.differences(out, read_manifest(old), read_manifest(new))


@cli.command()
@click.argument("files", type=_PATH, nargs=-1, required=True, metavar="TUNINGS...")
@click.option("-o", "--output", type=_PATH, required=True, metavar="FILE", help="Write it there.")
@_manners
@click.pass_obj
def merge(out: Output, files: tuple[Path, ...], output: Path) -> int:
    """Make one file of several tunings of one GPU and one Triton.

    What was measured twice is refused: nothing says which counts.
    """
    from prewarm.core.tunings_merge import merge as merge_
    from prewarm.core.tunings_yaml import read_tunings, write_tunings

    merged = merge_([read_tunings(file) for file in files])
    write_tunings(output, merged)
    out.product(str(output), {"path": str(output), "digest": merged.digest})
    return _DONE


@cli.command()
@click.argument("thing", metavar="X")
@click.option(
    "--plot", type=_PATH, metavar="FILE", help="Draw tunings into FILE too: an .svg or a .png."
)
@_WANT
@_TRUST
@_REGISTRY
@_manners
@click.pass_obj
def show(out: Output, /, thing: str, plot: Path | None, **how: Any) -> int:
    """Show what a file, a directory or a registry holds.

    X is a manifest, tunings, an image layout, an installed or mounted cache, an image reference,
    or the word `targets`.
    """
    from prewarm import render, verbs
    from prewarm.ship.reference import names_a_registry

    found: Any
    data: Any
    if thing == "targets" and not os.path.exists(thing):
        data = found = tuple(targets().values())
        text = render.targets(found)
    elif not os.path.exists(thing) and names_a_registry(thing):
        from prewarm import shipping

        return shipping.show(out, thing, **how)
    elif how["key"] is not None or how["identity"] is not None:
        raise click.UsageError(f"{thing} is on this machine, and signatures are in a registry")
    elif os.path.isdir(thing):
        from prewarm.ship.verify import installed_manifest

        data = found = installed_manifest(Path(thing))
        text = render.cache(found)
    else:
        found = verbs.read_document(Path(thing))
        data, text = verbs.plain_document(found), render.document(found)
    if plot is not None:
        verbs.draw(out, found, plot)
    out.product(text, data)
    return _DONE


def main(argv: Sequence[str] | None = None) -> int:
    """Run prewarm with `argv`, by default the process's own, and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    ours, _ = _split(arguments)
    out = Output(as_json="--json" in ours, debug="--debug" in ours)
    try:
        with cli.make_context("prewarm", arguments, obj=out) as context:
            return int(cli.invoke(context) or _DONE)
    except click.exceptions.Exit as done:
        return done.exit_code
    except (KeyboardInterrupt, click.Abort):
        return out.error("interrupted", None, _INTERRUPTED)
    except ReaderGoneError:
        return _READER_GONE
    except Exception as error:  # noqa: BLE001 (whatever nobody foresaw is a bug, told in one line)
        return out.failure(error)
