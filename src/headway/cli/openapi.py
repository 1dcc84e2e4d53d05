"""headway openapi: what the two planes offer."""

from __future__ import annotations

from typing import Annotated

import typer

from headway.cli.terminal import emit_json
from headway.errors import InvalidRequestError


def openapi(
    plane: Annotated[str, typer.Argument(help="`data`: what applications call; `control`: administration.")],
) -> None:
    """Print the OpenAPI document of a plane; each also serves its own at /openapi.json.

    Example: [bold]headway openapi data > openapi.json[/bold]
    """
    # Imported here: the web framework is slow to load, and no other command needs it.
    if plane == "data":
        from headway.api.openapi import dataplane_document  # noqa: PLC0415

        emit_json(dataplane_document())
    elif plane == "control":
        from headway.api.controlplane import controlplane_document  # noqa: PLC0415

        emit_json(controlplane_document())
    else:
        raise InvalidRequestError(f"the planes are `data` and `control`, not {plane!r}", param="plane")
