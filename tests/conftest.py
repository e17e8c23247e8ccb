"""Fixtures of all tests."""

import pytest
import torch

from llm2enc.encoding import Encoder
from tests.support.builders import make_encoder, run_here


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # sums in another order would differ in the last bit


@pytest.fixture(autouse=True, scope="session")
def _private_datasets_cache(tmp_path_factory: pytest.TempPathFactory):
    import datasets

    former = {}
    for name in ("HF_DATASETS_CACHE", "DOWNLOADED_DATASETS_PATH", "EXTRACTED_DATASETS_PATH"):
        former[name] = getattr(datasets.config, name)
        setattr(datasets.config, name, tmp_path_factory.mktemp("datasets"))
    yield
    for name, value in former.items():
        setattr(datasets.config, name, value)


@pytest.fixture
def encoder() -> Encoder:
    return make_encoder()


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """All engines run in this process."""
    monkeypatch.setattr("llm2enc.verification.subprocesses._run", run_here)
