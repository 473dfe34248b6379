"""Time GDN prefill by FlashInfer, by Triton with kept winners, and by Triton as vLLM chooses.

    python benchmarks/backends.py MANIFEST CAPTURE TUNINGS FLASHINFER -o FILE

MANIFEST is planned with `--gdn-prefill-backend triton`, CAPTURE what `prewarm tune --work` keeps of
it, TUNINGS those of its tuning keys on this GPU, FLASHINFER what `prewarm compile --flashinfer`
filled for the same deployment. The three are measured as `prewarm tune --flashinfer` does, in one
process and in interleaved rounds; what is spared is tuning again. Prints a table. With
`--cache-dir DIR` the configs stay there, and `--compile-only` stops once they are.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec

from prewarm.core.cache import COMPILED_NAME
from prewarm.core.capture import Capture
from prewarm.core.capture_file import read_capture
from prewarm.core.manifest_yaml import read_manifest
from prewarm.core.selection import tuning_id
from prewarm.core.target import target_named
from prewarm.core.tunings import KeyTuning, Prefill, Size
from prewarm.core.tunings_yaml import read_tunings
from prewarm.tune import nvidia_smi
from prewarm.tune.message import Share, Task
from prewarm.tune.prefills import prefills, rival_of
from prewarm.tune.prepare import prepare, shares_of
from prewarm.tune.workers import WORKER, probe


def main() -> None:
    """Measure and write what was found."""
    asked = _asked()
    manifest, capture = read_manifest(asked.manifest), read_capture(asked.capture)
    tunings, shares = read_tunings(asked.tunings), shares_of(capture)
    tuned = {
        tuning_id(kernel.name, key.key): key for kernel in tunings.kernels for key in kernel.keys
    }
    keys = [tuned[tuning_id(share.kernel, share.key)] for share in shares]
    with contextlib.ExitStack() as stack:
        directory = asked.cache_dir or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        task = Task(
            gpu="0",
            target=target_named(manifest.deployment.target),
            toolchain=manifest.toolchain,
            capture=str(asked.capture.resolve()),
            cache_dir=str(directory.resolve()),
            shares=(),
            sizes=tuple(
                Size(tokens=each.tokens, sequences=each.sequences) for each in capture.steps
            ),
        )
        if not (directory / COMPILED_NAME).exists():
            here = msgspec.structs.replace(manifest, toolchain=probe(task).toolchain)
            prepare(here, _only_measured(capture, shares, keys), directory, None, print)
        if asked.compile_only:
            return
        rival = rival_of(asked.flashinfer, manifest, keys)
        watched = directory / "clocks.csv"
        with nvidia_smi.watching(watched):
            found = prefills(msgspec.structs.replace(task, shares=shares, rival=rival), WORKER)
        readings = nvidia_smi.parse(watched.read_text())
    plain = {
        "gpu": tunings.gpu,
        "driver": readings[0].driver,
        "clocks": nvidia_smi.clocks_of(readings, readings[0].uuid),
        "date": dt.datetime.now(dt.UTC).strftime("%Y-%m-%d"),
        "serve_args": manifest.deployment.serve_args,
        "tunings": tunings.digest,
        "sizes": [f"{size.tokens}x{size.sequences}" for size in task.sizes],
        "prefills": found,
    }
    asked.output.write_text(json.dumps(msgspec.to_builtins(plain), indent=1) + "\n", "utf-8")
    _print(task.sizes, found)


def _asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("manifest", "capture", "tunings", "flashinfer"):
        parser.add_argument(name, type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--cache-dir", type=Path)
    parser.add_argument("--compile-only", action="store_true")
    return parser.parse_args()


def _only_measured(capture: Capture, shares: Sequence[Share], keys: Sequence[KeyTuning]) -> Capture:
    """Return `capture` with the configs that are measured alone, of all that were searched."""
    measured = [
        (share.kernel, config)
        for share, key in zip(shares, keys, strict=True)
        for config in (key.winner, key.reference)
    ]
    kernels = tuple(
        msgspec.structs.replace(
            kernel,
            configs=tuple(each for each in kernel.configs if (kernel.name, each) in measured),
        )
        for kernel in capture.kernels
    )
    return msgspec.structs.replace(capture, kernels=kernels)


def _print(sizes: Sequence[Size], found: Sequence[Prefill]) -> None:
    print("µs: " + "; ".join(each.name for each in found))
    for at, size in enumerate(sizes):
        times = "".join(f"{each.times[at]:12.1f} ±{each.spread[at]:5.1%}" for each in found)
        print(f"{size.tokens:>6} x {size.sequences}{times}")


if __name__ == "__main__":
    main()
