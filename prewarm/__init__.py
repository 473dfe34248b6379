"""prewarm: a cache image with every GDN kernel of a vLLM deployment already compiled."""

__version__ = "0.1.0"
