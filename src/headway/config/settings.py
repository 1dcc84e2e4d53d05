"""Settings of the process, from environment variables named ``HEADWAY_*``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from headway.errors import ConfigurationError

_PREFIX = "HEADWAY_"

Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]
Amount = Annotated[float, msgspec.Meta(gt=0.0, le=1e9)]


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """How this process runs. Each field ``name`` is set by ``HEADWAY_NAME``.

    Attributes:
        home: Folder of everything local: embedded database, spool, last snapshot.
        config: The configuration file.
        database_url: PostgreSQL to use; without it the embedded server is started under ``home``.
        host: Address of the data plane.
        port: Port of the data plane.
        admin_host: Address of the control plane.
        admin_port: Port of the control plane.
        workers: Worker processes of the data plane.
        max_body_mb: Largest request body accepted, in megabytes.
        body_seconds: How long a request body may take to come.
        cors_origins: Origins, separated by commas, whose pages may post feedback; ``*`` for any.
        spool_mb: Largest size of the spool on disk per worker, in megabytes.
        spool_hours: Age after which spooled batches are dropped.
        queue_size: Interactions a worker holds in memory before it drops (and counts) them.
        drain_seconds: How long requests in flight may take to finish at shutdown.
        tick_seconds: How often the controller looks at running rollouts.
        lost_control_seconds: How long a worker may hear nothing of the database before rollouts whose policy says so
            are back to stable there.
        log_level: debug, info, warning or error.
        log_format: json, or console for people.
    """

    home: Path = Path(".headway")
    config: Path = Path("headway.yaml")
    database_url: str | None = None
    host: str = "127.0.0.1"
    port: Port = 8080
    admin_host: str = "127.0.0.1"
    admin_port: Port = 8081
    workers: Annotated[int, msgspec.Meta(ge=1, le=64)] = 2
    max_body_mb: Amount = 32.0
    body_seconds: Amount = 60.0
    cors_origins: str = "*"
    spool_mb: Amount = 1024.0
    spool_hours: Amount = 72.0
    queue_size: Annotated[int, msgspec.Meta(ge=1, le=10_000_000)] = 20_000
    drain_seconds: Amount = 30.0
    tick_seconds: Annotated[float, msgspec.Meta(ge=0.05, le=3600.0)] = 5.0
    lost_control_seconds: Annotated[float, msgspec.Meta(ge=5.0, le=1e9)] = 60.0
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["json", "console"] = "json"

    @property
    def origins(self) -> tuple[str, ...]:
        """The CORS origins, one by one."""
        return tuple(part.strip() for part in self.cors_origins.split(",") if part.strip())


def load_settings(environment: Mapping[str, str] | None = None) -> Settings:
    """Read the settings from the environment.

    Raises:
        ConfigurationError: A variable does not fit its setting, or is empty.
    """
    environment = os.environ if environment is None else environment
    given = {
        name: environment[_PREFIX + name.upper()]
        for name in Settings.__struct_fields__
        if environment.get(_PREFIX + name.upper())
    }
    try:
        settings = msgspec.convert(given, Settings, strict=False, dec_hook=_decode)
    except msgspec.ValidationError as error:
        what, _, field = str(error).removesuffix("`").partition(" - at `$.")
        raise ConfigurationError(f"the environment variable {_PREFIX}{field.upper()} does not fit: {what}") from error
    return msgspec.structs.replace(settings, home=settings.home.absolute())


def _decode(kind: type, value: object) -> object:
    if kind is Path:
        return Path(str(value))
    raise NotImplementedError(kind)
