"""A rollout to drive."""

import pytest

from headway.clock import ManualClock
from headway.storage.database import Database
from tests.trial import Trial, begin_trial


@pytest.fixture
def clock() -> ManualClock:
    """What all of Headway goes by in these tests."""
    return ManualClock()


@pytest.fixture
async def trial(database: Database, clock: ManualClock) -> Trial:
    """A rollout at the first step of its ramp."""
    return await begin_trial(database, clock)
