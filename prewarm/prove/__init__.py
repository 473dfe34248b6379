"""Serving steps in fresh processes on a GPU, with and without a cache, and what Triton did."""
