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

import prewarm
from prewarm.core.search_space import MOST
from prewarm.core.target import Target, target_named, targets
from prewarm.output import Output, ReaderGoneError

_DONE, _FINDINGS, _INTERRUPTED, _READER_GONE = 0, 1, 130, 141

F = TypeVar("F", bound=Callable[..., Any])


class ServeVerb(click.Command):
    """A verb whose arguments after `--` are those of `vllm serve`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse what stands before `--`, and pass on what stands behind it untouched."""
        ours, theirs = _split(args)
        ctx.allow_extra_args = True
        rest = super().parse_args(ctx, ours)
        if theirs[:2] == ["vllm", "serve"]:
            theirs = theirs[2:]
        if rest or not theirs:
            message = "put the model and the other arguments of vllm serve after --"
            raise click.UsageError(message, ctx)
        ctx.params["serve_args"] = tuple(theirs)
        return rest

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        """Return the pieces of the usage line."""
        return [*super().collect_usage_pieces(ctx), "-- MODEL [SERVE ARGS]"]


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
_TRACING = _options(
    _TARGET,
    click.option(
        "--closure",
        type=click.IntRange(min=0),
        default=50,
        show_default=True,
        help="Random workloads in a row that must show nothing new.",
    ),
    click.option(
        "--seed", type=int, default=0, show_default=True, help="Seed of the random workloads."
    ),
)
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
_MOUNT_PATH = click.option(
    "--mount-path",
    metavar="DIR",
    help="Where the image's root will be mounted or copied; then no install is needed.",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(prewarm.__version__, prog_name="prewarm", message="%(prog)s %(version)s")
@_manners
def cli() -> None:
    """Make container layers in which vLLM's GDN Triton kernels are already compiled.

    Arguments after -- are those of `vllm serve`.
    """


@cli.command(cls=ServeVerb)
@_TRACING
@click.option("-o", "--output", type=_PATH, metavar="FILE", help="Write the manifest there.")
@click.option("--check", type=_PATH, metavar="FILE", help="Exit 1 if FILE would change.")
@_manners
@click.pass_obj
def plan(out: Output, /, output: Path | None, check: Path | None, **asked: Any) -> int:
    """Trace a deployment and write its manifest.

    Without -o the manifest goes to stdout.
    """
    from prewarm import verbs
    from prewarm.core.manifest_yaml import render_manifest, write_manifest

    found = verbs.trace(out, **asked)
    if check is not None:
        return verbs.check(out, check, found)
    if output is None:
        out.product(render_manifest(found), found)
        return _DONE
    write_manifest(output, found)
    out.product(str(output), {"path": str(output), "digest": found.digest})
    return _DONE


@cli.command(name="compile")
@click.argument("manifest", type=_PATH)
@_CACHE_DIR
@_JOBS
@_TUNINGS
@_manners
@click.pass_obj
def compile_(
    out: Output,
    /,
    manifest: Path,
    cache_dir: Path,
    jobs: int | None,
    tunings: tuple[Path, ...],
    **how: bool,
) -> int:
    """Compile every launch of a manifest, without a GPU.

    With tunings, the winners only.
    """
    from prewarm import verbs
    from prewarm.core.manifest_yaml import read_manifest

    found = read_manifest(manifest)
    selection = verbs.select(out, found, verbs.read_tunings(tunings, **how), **how)
    counts = verbs.compile_launches(out, found, cache_dir, jobs, selection)
    verbs.say_first_start(out, found, selection)
    out.product(", ".join(f"{count} {kind}" for kind, count in counts.items()), counts)
    return _DONE


@cli.command()
@click.argument("manifest", type=_PATH)
@_CACHE_DIR
@click.option("-o", "--output", type=_PATH, required=True, help="OCI image layout to write.")
@_MOUNT_PATH
@_manners
@click.pass_obj
def pack(out: Output, manifest: Path, cache_dir: Path, output: Path, mount_path: str | None) -> int:
    """Pack what was compiled into a reproducible image."""
    from prewarm import verbs
    from prewarm.core.manifest_yaml import read_manifest

    return verbs.pack(out, read_manifest(manifest), cache_dir, output, mount_path)


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


@cli.command(cls=ServeVerb)
@_TRACING
@click.option("-o", "--output", type=_PATH, help="Image to write.  [default: MODEL-TARGET]")
@_JOBS
@_TUNINGS
@click.option("--cache-dir", type=_PATH, help="Directory to compile into.  [default: per user]")
@_MOUNT_PATH
@click.option("--keep-manifest", type=_PATH, metavar="FILE", help="Write the manifest there too.")
@_manners
@click.pass_obj
def build(out: Output, /, output: Path | None, jobs: int | None, **asked: Any) -> int:
    """Plan, compile and pack in one go."""
    from prewarm import verbs
    from prewarm.core.manifest_yaml import write_manifest

    cache_dir, mount_path, keep, files = (
        asked.pop(n) for n in ("cache_dir", "mount_path", "keep_manifest", "tunings")
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
    return verbs.pack(out, found, cache_dir, output or verbs.default_output(found), mount_path)


@cli.command()
@click.argument("source", type=_PATH)
@click.option("--into", type=_PATH, required=True, metavar="DIR", help="Directory to serve from.")
@click.option(
    "--on-mismatch",
    type=click.Choice(["fail", "warn"]),
    default="fail",
    show_default=True,
    help="What to do with a cache for another CPU: exit 8, or install nothing and exit 0.",
)
@click.option("--print-env", is_flag=True, help="Print the variables that serving needs as well.")
@click.option(
    "--env-format",
    type=click.Choice(["dockerfile", "shell", "kubernetes"]),
    default="dockerfile",
    show_default=True,
    help="How --print-env writes them.",
)
@_manners
@click.pass_obj
def install(out: Output, /, source: Path, into: Path, on_mismatch: Any, **env: Any) -> int:
    """Install a cache into a directory, whole or not at all.

    SOURCE is an image layout, or the directory at which an image is mounted.
    """
    from prewarm.ship.environment import environment, render_environment
    from prewarm.ship.install import install as install_

    done = install_(source, into, on_mismatch=on_mismatch)
    for line in done.decision:
        out.detail(line)
    out.say(f"{done.state}: {done.launches} launches, {done.identity}")
    variables = environment(done.directory, done.toolchain) if env["print_env"] else ()
    text = render_environment(variables, env["env_format"])
    out.product(f"{done.directory}\n{text}", {"installed": done, "environment": variables})
    return _DONE


@cli.command()
@click.argument("source", type=_PATH)
@click.option(
    "--target",
    callback=_maybe_target,
    metavar="NAME",
    help="GPU that will serve.  [default: the one that is visible here]",
)
@click.option("--integrity-only", is_flag=True, help="Do not ask Triton whether it will hit.")
@_manners
@click.pass_obj
def verify(out: Output, /, source: Path, target: Target | None, *, integrity_only: bool) -> int:
    """Say what is wrong with a cache, and whether it will hit here; exit 1 if anything is wrong.

    SOURCE is an image layout, the directory at which an image is mounted, or a directory that
    was installed into. Run it in the image that will serve: the toolchain is compared, and
    Triton's own lookup is asked for every launch. No GPU is needed.
    """
    from prewarm import verbs

    return verbs.verify(out, source, target, fit=not integrity_only)


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
@_manners
@click.pass_obj
def show(out: Output, thing: str, plot: Path | None) -> int:
    """Show what a file or directory holds.

    X is a manifest, tunings, an image layout, an installed or mounted cache, or the word
    `targets`.
    """
    from prewarm import render, verbs

    found: Any
    data: Any
    if thing == "targets" and not os.path.exists(thing):
        data = found = tuple(targets().values())
        text = render.targets(found)
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
