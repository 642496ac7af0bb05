"""Deterministic operations in each test, as far as CUDA has them."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _deterministic(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    yield
    torch.use_deterministic_algorithms(mode=False)
