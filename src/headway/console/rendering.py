"""Templates to pages, and the files that pages load: all of it is in this package, nothing comes from elsewhere."""

from __future__ import annotations

import gzip
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from importlib import resources
from types import MappingProxyType
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from headway import __version__
from headway.clock import utc
from headway.console.services import Visitor
from headway.domain import display

STATIC = "/static"

_HYPHEN = re.compile(r"(?<![\w.)])-(?=[\d∞])")
_TYPES: Mapping[str, str] = MappingProxyType(
    {"css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8", "svg": "image/svg+xml"}
)


@dataclass(frozen=True)
class Asset:
    """A file that pages load; ``version`` is a hash of its content."""

    body: bytes
    compressed: bytes
    content_type: str
    version: str


def load_assets() -> dict[str, Asset]:
    """Read the files of the console, by name."""
    assets = {}
    for file in resources.files(__package__).joinpath("static").iterdir():
        content_type = _TYPES.get(file.name.rpartition(".")[2])
        if content_type is not None:
            body = file.read_bytes()
            version = hashlib.sha256(body).hexdigest()[:12]
            assets[file.name] = Asset(body, gzip.compress(body, mtime=0), content_type, version)
    return assets


def serve_asset(assets: Mapping[str, Asset], request: Request) -> Response:
    """Answer with a file. Its address names its content, so browsers may keep it for ever."""
    asset = assets.get(request.path_params["name"])
    if asset is None:
        raise HTTPException(404)
    current = request.query_params.get("v") == asset.version
    headers = {"cache-control": "public, max-age=31536000, immutable" if current else "no-cache"}
    if "gzip" in request.headers.get("accept-encoding", ""):
        headers |= {"content-encoding": "gzip", "vary": "accept-encoding"}
        return Response(asset.compressed, headers=headers, media_type=asset.content_type)
    return Response(asset.body, headers=headers, media_type=asset.content_type)


class Renderer:
    """Renders templates: whatever a person or a model wrote is escaped, and what is undefined is an error."""

    def __init__(self, assets: Mapping[str, Asset]) -> None:
        self._environment = Environment(
            loader=PackageLoader("headway.console"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._environment.globals["asset"] = lambda name: f"{STATIC}/{name}?v={assets[name].version}"
        self._environment.globals["version"] = __version__
        for name in ("format_share", "describe_state", "describe_outcome", "format_seconds", "format_usd"):
            self._environment.filters[name.removeprefix("format_").removeprefix("describe_")] = getattr(display, name)
        self._environment.filters |= {"moment": _moment, "sentence": _sentence, "minus": _minus}

    def text(self, template: str, **values: Any) -> str:
        """Render a template."""
        return self._environment.get_template(template).render(values)

    def page(self, template: str, visitor: Visitor | None, *, status: int = 200, **values: Any) -> Response:
        """Render a page for a visitor."""
        return HTMLResponse(self.text(template, visitor=visitor, status=status, **values), status)


def _sentence(message: str) -> str:
    """Make a sentence of a message; what begins with a name stays as it is."""
    first = message.partition(" ")[0]
    start = message[:1].upper() if first.isalpha() else message[:1]
    end = "" if message.endswith((".", "?", "!", "…")) else "."
    return f"{start}{message[1:]}{end}" if message else ""


def _minus(text: str) -> str:
    """Write minus signs as such."""
    return _HYPHEN.sub("−", text)


def _moment(at: datetime, now_ms: int) -> str:
    """Write a time (UTC): "14:05" today, else "21 Nov 14:05"; with the year where it is another one."""
    now = utc(now_ms)
    if at.date() == now.date():
        return f"{at:%H:%M}"
    return f"{at.day} {at:%b %H:%M}" if at.year == now.year else f"{at.day} {at:%b %Y %H:%M}"
