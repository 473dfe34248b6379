"""The vLLM plugin: what the entry point in `vllm.general_plugins` calls."""

from __future__ import annotations

import os

from prewarm.serve.log import feature
from prewarm.serve.settings import read_settings
from prewarm.serve.vllm_seam import is_inspection

_PROCESSES: list[object] = []
"""What looks after this process, once something does."""


def register() -> None:
    """Begin to look after the Triton cache of this process, where the environment asks for it.

    vLLM calls it in every process, in some several times. Raises nothing: a fault costs one
    feature and a line in vLLM's log.
    """
    with feature("the plugin"):
        if _PROCESSES or is_inspection():
            return
        settings = read_settings(os.environ)
        if settings is not None:
            from prewarm.serve.process import Process

            process = Process(settings)
            _PROCESSES.append(process)
            process.start()
