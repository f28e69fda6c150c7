"""Shared fixtures: one thread, and the folder of real data where there is one."""

import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder named by DDANALYSIS_DATA; tests on real data are skipped without it."""
    root = os.environ.get("DDANALYSIS_DATA", "")
    if not root or not Path(root).is_dir():
        pytest.skip("real data: set DDANALYSIS_DATA to a folder that holds it")
    return Path(root)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The notebooks, the longest file, begin first, so that no core waits for them in the end."""
    items.sort(key=lambda item: item.path.name != "test_notebooks.py")
