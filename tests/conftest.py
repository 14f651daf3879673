"""What every test shares: without a CUDA device, `gpu` tests are deselected and Triton kernels are interpreted."""

import importlib.util
import os
from collections.abc import Iterator
from types import ModuleType

import hypothesis
import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """What pyproject.toml tells plugins that are not here, as on a machine that only lends a GPU."""
    if importlib.util.find_spec("pytest_timeout") is None:
        parser.addini("timeout", "seconds of a test, which nothing counts here")
    if importlib.util.find_spec("pytest_benchmark") is None:
        parser.addoption("--benchmark-disable", action="store_true", help="there are no benchmarks here")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "timeout(seconds): of one test, by pytest-timeout where that is installed")
    if os.environ.get("PYTEST_XDIST_WORKER"):
        import torch

        torch.set_num_threads(1)  # workers whose threads wait for each other on busy cores take many times longer
    if importlib.util.find_spec("triton") and not cuda_is_available():
        from fp8sim.triton_kernels import interpreter

        interpreter.enable()
    # No example has a deadline: a busy machine is no fault of the code. The fast tests try the same examples every
    # time, so that what passed here passes elsewhere; the full ones look for new ones.
    same = {"derandomize": True, "database": None} if config.option.markexpr == "not full" else {}
    hypothesis.settings.register_profile("fp8sim", hypothesis.settings.default, deadline=None, **same)
    hypothesis.settings.load_profile("fp8sim")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    gpu_items = [item for item in items if item.get_closest_marker("gpu")]
    if gpu_items and not cuda_is_available():
        items[:] = [item for item in items if item not in gpu_items]
        config.hook.pytest_deselected(items=gpu_items)


def cuda_is_available() -> bool:
    import torch

    return torch.cuda.is_available()


@pytest.fixture
def any_isa() -> Iterator[None]:
    """Puts the instruction set back that a test replaces."""
    from fp8sim import _core

    chosen = _core.isa()
    yield
    _core.set_isa(chosen)


@pytest.fixture(scope="session")
def cuda() -> ModuleType:
    """The extension with the CUDA kernels."""
    return pytest.importorskip("fp8sim._cuda", reason="fp8sim was built without nvcc")
