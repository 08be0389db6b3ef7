"""Decoder kernels for the CPU, compiled by numba when they are first wanted and kept on disk from then on."""
