"""vLLM's engine as a request wants it: its GDN layers alone, or all of it with dummy weights."""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager
from pathlib import Path

import torch

from prewarm.prove.cut import cut
from prewarm.prove.message import Request
from prewarm.trace import vllm_seam
from prewarm.trace.engine import Driven
from prewarm.trace.model_source import resolve_model


class Launching:
    """Hears of nothing: launches are Triton's."""

    via = ""

    def recording(self) -> AbstractContextManager[None]:
        return contextlib.nullcontext()


def engine_of(request: Request) -> Driven:
    """Return the engine that `request` asks for, ready to serve.

    Raises InputError with vLLM's own reason, UnsupportedError without GDN layers.
    """
    args = vllm_seam.parse_serve_args(request.serve_args)
    directory = resolve_model(args.model, args.revision).directory
    with torch.inference_mode():
        if request.depth == "engine":
            with cut(Path(directory), request.layers) as model:
                core = vllm_seam.whole_engine(vllm_seam.dummy_engine_config(args, str(model)))
        else:
            worker = vllm_seam.LAYER_WORKER
            vllm_seam.stand_alone()
            config = vllm_seam.engine_config(args, directory, None, worker)
            core = vllm_seam.engine_core(config)
    return Driven(core, Launching())
