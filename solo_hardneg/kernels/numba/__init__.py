"""The numba backend: compiled loops on a CPU."""
