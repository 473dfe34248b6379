"""The prefill sizes that are measured, and what each counts."""

from __future__ import annotations

import re
from collections.abc import Iterator

from prewarm.core.errors import InputError
from prewarm.core.manifest import Manifest
from prewarm.core.tunings import Size

WARM_UP = 64
"""Tokens of vLLM's own warm-up, which is one sequence; always measured, to compare with."""
SEVERAL = 8
"""Sequences of a step with several."""
_LEAST_EACH = 64
"""Tokens that each of several sequences has at least: one chunk."""
_DOUBLING_FROM = 1024
"""Tokens from which sizes double; below they grow by four."""
_SIZE = re.compile(r"(\d+)(?:x(\d+))?(?:=(\d+(?:\.\d+)?))?")


def default_sizes(manifest: Manifest) -> tuple[Size, ...]:
    """Return powers of two from one chunk to the token budget, as one sequence and as several.

    All weigh the same; the budget is the deployment's `max_num_batched_tokens`.
    """
    budget, sequences = _limits(manifest)
    several = [t for t in _tokens(budget) if t >= SEVERAL * _LEAST_EACH and sequences >= SEVERAL]
    one = [Size(tokens=tokens, sequences=1) for tokens in _tokens(budget)]
    return (*one, *(Size(tokens=tokens, sequences=SEVERAL) for tokens in several))


def _limits(manifest: Manifest) -> tuple[int, int]:
    geometry = manifest.geometry
    budget, sequences = geometry["max_num_batched_tokens"], geometry["max_num_seqs"]
    assert isinstance(budget, int)
    assert isinstance(sequences, int)
    return budget, sequences


def _tokens(budget: int) -> Iterator[int]:
    """Yield 64, 256, 1024, then powers of two below `budget`, and `budget`."""
    size = WARM_UP
    while size < budget:
        yield size
        size *= 4 if size < _DOUBLING_FROM else 2
    yield budget


def parse_sizes(text: str) -> tuple[Size, ...]:
    """Return the sizes in `TOKENS[xSEQUENCES][=WEIGHT],…`, that of vLLM's warm-up added.

    The added one weighs nothing. Raises InputError for what is not such a list.
    """
    sizes = [_parse(part.strip()) for part in text.split(",")]
    if len({(size.tokens, size.sequences) for size in sizes}) < len(sizes):
        raise InputError(f"a size stands twice in {text!r}")
    if not any(size.weight for size in sizes):
        raise InputError(f"no size in {text!r} has a weight", "--sizes 2048,8192=2")
    if (WARM_UP, 1) not in {(size.tokens, size.sequences) for size in sizes}:
        sizes.append(Size(tokens=WARM_UP, sequences=1, weight=0.0))
    return tuple(sorted(sizes, key=lambda size: (size.sequences, size.tokens)))


def _parse(part: str) -> Size:
    found = _SIZE.fullmatch(part)
    tokens, sequences = (int(n or 1) for n in found.groups()[:2]) if found else (0, 0)
    if not found or not 0 < sequences <= tokens:
        raise InputError(
            f"{part!r} is not a prefill size",
            "--sizes 2048,8192,8192x8=2  (TOKENS[xSEQUENCES][=WEIGHT], at least a token each)",
        )
    return Size(tokens=tokens, sequences=sequences, weight=float(found[3] or 1))
