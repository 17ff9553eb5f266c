"""Without a GPU these tests are skipped, not failed: pytest -m gpu is then a look at the rest."""

import pytest


@pytest.fixture(autouse=True, scope="session")
def gpu() -> None:
    import torch  # seconds, which collecting for other tests should not take

    if not torch.cuda.is_available():
        pytest.skip("torch sees no NVIDIA GPU here")
