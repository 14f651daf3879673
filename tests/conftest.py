"""What every test shares: tests marked `gpu` are deselected where there is no CUDA device."""

import pytest


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    gpu_items = [item for item in items if item.get_closest_marker("gpu")]
    if gpu_items and not cuda_is_available():
        items[:] = [item for item in items if item not in gpu_items]
        config.hook.pytest_deselected(items=gpu_items)


def cuda_is_available() -> bool:
    import torch

    return torch.cuda.is_available()
