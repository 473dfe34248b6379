"""What FlashInfer would compile at first use, made without a GPU; imports core and device.

May import torch and FlashInfer, the latter in `flashinfer_seam` only.
"""
