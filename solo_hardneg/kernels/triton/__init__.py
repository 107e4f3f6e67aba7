"""The triton backend: fused kernels on a GPU."""
