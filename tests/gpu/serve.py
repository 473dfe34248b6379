"""Serves a small model with vLLM's own engine on the GPU, and prints what Triton did, as JSON.

Usage: serve.py MODEL_DIRECTORY [SERVE ARGS…]. Runs in a process of its own: the counts are of
everything from the first import to the last token.
"""

from __future__ import annotations

import collections
import json
import os
import sys
import time

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ["VLLM_USE_FLASHINFER_SAMPLER"] = "0"

PROMPTS = {
    "one prompt": (2000,),
    "short prompts": (1, 2, 15, 16, 17, 63, 64, 65, 130),
    "a full batch": (64,) * 16,
}
TOKENS = 6


def main() -> None:
    """Serve, count, print."""
    import vllm  # noqa: F401  (its environment overrides come before Triton is imported)
    from triton import knobs
    from triton.runtime import autotuner

    counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)

    def listen(*, src: object, cache_hit: bool, **_: object) -> None:
        name = f"{src.fn.__module__}:{src.fn.__qualname__}"  # type: ignore[attr-defined]
        counts[name]["hit" if cache_hit else "compile"] += 1
        if not cache_hit and name.startswith("vllm."):
            misses.append({"kernel": name, "arguments": _arguments(src)})

    misses: list[dict[str, object]] = []
    bench = autotuner.Autotuner._bench

    def counting(tuner: autotuner.Autotuner, *args: object, **keywords: object) -> object:
        counts[f"{tuner.base_fn.__module__}:{tuner.base_fn.__qualname__}"]["benchmark"] += 1
        return bench(tuner, *args, **keywords)

    knobs.compilation.listener = listen
    autotuner.Autotuner._bench = counting  # type: ignore[method-assign]
    seconds = {}
    began = time.monotonic()
    engine = _engine(sys.argv[1:])
    seconds["start-up"] = time.monotonic() - began
    for name, lengths in PROMPTS.items():
        began = time.monotonic()
        _generate(engine, lengths)
        seconds[name] = time.monotonic() - began
    result = {"counts": counts, "misses": misses, "seconds": seconds, "error": _error()}
    sys.stdout.write("RESULT " + json.dumps(result) + "\n")
    sys.stdout.flush()
    os._exit(0)


def _arguments(src: object) -> dict[str, str]:
    """Return what Triton specialized each argument of a compile on."""
    types, constants, attributes = src.signature, src.constants, src.attrs  # type: ignore[attr-defined]
    return {
        name: f"{kind} {constants.get((index,), '')} {attributes.get((index,), '')}"
        for index, (name, kind) in enumerate(types.items())
    }


def _engine(serve_args: list[str]) -> object:
    from vllm.engine.arg_utils import EngineArgs
    from vllm.entrypoints.openai.cli_args import make_arg_parser
    from vllm.usage.usage_lib import UsageContext
    from vllm.utils.argparse_utils import FlexibleArgumentParser
    from vllm.v1.engine.llm_engine import LLMEngine

    args = make_arg_parser(FlexibleArgumentParser()).parse_args(serve_args)
    args.model = args.model_tag or args.model
    engine_args = EngineArgs.from_cli_args(args)
    return LLMEngine.from_engine_args(engine_args, usage_context=UsageContext.OPENAI_API_SERVER)


def _generate(engine: object, lengths: tuple[int, ...]) -> None:
    from vllm import SamplingParams

    params = SamplingParams(max_tokens=TOKENS, ignore_eos=True, temperature=0.0, detokenize=False)
    for index, length in enumerate(lengths):
        prompt = {"prompt_token_ids": [7 + index] * length}
        engine.add_request(f"{lengths}-{index}", prompt, params)  # type: ignore[attr-defined]
    while engine.has_unfinished_requests():  # type: ignore[attr-defined]
        engine.step()  # type: ignore[attr-defined]


def _error() -> float:
    """Return the relative error of the cached prefill kernels against the recurrence in float64."""
    import torch
    from vllm.model_executor.layers.fla.ops import chunk_gated_delta_rule

    torch.manual_seed(0)
    tokens, key_heads, heads, dim = 200, 16, 32, 128
    like = {"device": "cuda", "dtype": torch.bfloat16}
    unit = torch.nn.functional.normalize
    q, k = (unit(torch.randn(1, tokens, key_heads, dim, **like), dim=-1) for _ in "qk")
    v = torch.randn(1, tokens, heads, dim, **like)
    beta = torch.rand(1, tokens, heads, device="cuda")
    g = torch.nn.functional.logsigmoid(torch.randn(1, tokens, heads, device="cuda") + 3)
    state = torch.randn(1, heads, dim, dim, device="cuda") * 0.1
    ends = torch.tensor([0, tokens], device="cuda", dtype=torch.int32)
    out, last = chunk_gated_delta_rule(
        q=q, k=k, v=v, g=g, beta=beta, initial_state=state.clone(), output_final_state=True,
        cu_seqlens=ends, use_qk_l2norm_in_kernel=False,
    )  # fmt: skip
    wanted, wanted_last = _recurrence(q, k, v, g, beta, state)
    return max(_relative(out, wanted), _relative(last, wanted_last))


def _recurrence(q, k, v, g, beta, state):  # type: ignore[no-untyped-def]  # noqa: PLR0917
    import torch

    groups = v.shape[2] // q.shape[2]
    q, k = (x[0].double().repeat_interleave(groups, dim=1) for x in (q, k))
    v, g, beta = (x[0].double() for x in (v, g, beta))
    s = state[0].double()  # value by key
    outs = []
    for t in range(v.shape[0]):
        s = s * g[t].exp()[:, None, None]
        wrong = v[t] - torch.einsum("hvk,hk->hv", s, k[t])
        s = s + torch.einsum("hv,hk->hvk", wrong * beta[t][:, None], k[t])
        outs.append(torch.einsum("hvk,hk->hv", s, q[t]) * q.shape[-1] ** -0.5)
    return torch.stack(outs)[None], s[None]


def _relative(found, wanted) -> float:  # type: ignore[no-untyped-def]
    return float((found.double() - wanted).norm() / wanted.norm())


if __name__ == "__main__":
    main()
