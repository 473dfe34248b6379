"""Measures the configs of autotuned kernels on real GPUs and chooses winners."""
