from collections.abc import AsyncIterator

import pytest

from headway.testing import Behaviour, ProviderSimulator


@pytest.fixture
async def provider() -> AsyncIterator[ProviderSimulator]:
    """A running simulator with one ordinary model, `m`."""
    async with ProviderSimulator({"m": Behaviour()}) as simulator:
        yield simulator
