"""Search over kernels and blocks."""
