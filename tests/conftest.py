"""Settings every test shares."""

import os

# Before torch is imported, and for every process a test starts: two processes of two threads each crawl on two cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

# The problems of the tests are tiny: a second thread costs more than it brings, and one thread is reproducible.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def own_store(tmp_path_factory, monkeypatch):
    """Give every test a store of its own: no test finds another's results, and none is left in the current folder."""
    folder = tmp_path_factory.mktemp("store") / "dyneq"
    monkeypatch.setenv("DYNEQ_STORE", str(folder))
    return folder
