"""Triton kernels, installed as `fp8sim.triton_kernels`."""
