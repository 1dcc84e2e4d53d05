"""What Headway writes to disk is for its own user alone, however open the umask is."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from headway.clock import ManualClock, SystemClock
from headway.config.settings import Settings
from headway.errors import StorageError
from headway.runtime.supervisor import Supervisor
from headway.storage.spool import Spool
from headway.testing import refusing_port
from tests.acceptance.harness import free_port


@pytest.fixture(autouse=True)
def _open_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def open_to_others(folder: Path) -> list[str]:
    """What another user of the machine may read or change."""
    found = [folder, *folder.rglob("*")]
    return [str(path) for path in found if stat.S_IMODE(path.lstat().st_mode) & 0o077]


async def test_the_spool_is_closed_to_others(tmp_path: Path) -> None:
    """Also the file of records that nobody can make sense of: prompts are in there."""
    folder = tmp_path / "interactions"
    spool = Spool(folder, ManualClock(), max_bytes=1_000_000)

    async def refuse(_: bytes) -> None:
        raise ValueError("junk")

    await spool.append(b"a prompt")
    await spool.replay(refuse, 1)
    await spool.append(b"another prompt")
    assert (folder / "refused").exists()
    assert open_to_others(folder) == []
    await spool.close()


def test_home_is_closed_to_others(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with refusing_port() as nobody:
        url = f"postgresql://headway@127.0.0.1:{nobody}/headway"
        settings = Settings(home=home, database_url=url, port=free_port(), admin_port=free_port())
        with pytest.raises(StorageError):
            Supervisor(settings, SystemClock(), lambda _: None).run(lambda: None)
    assert open_to_others(home) == []
