"""What every test shares."""

import os

import pytest


@pytest.fixture(scope="session")
def proof() -> bool:
    """True in `make proof`: run at full size instead of the reduced size of `make test`."""
    return os.environ.get("HEADWAY_PROOF", "") not in ("", "0")
