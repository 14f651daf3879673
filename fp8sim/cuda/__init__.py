"""The CUDA C++ kernels of `fp8sim._cuda` on torch tensors: checks, memory and the current stream around them.

They record no gradient: the public functions under `use_backend("cuda")` do.
"""
