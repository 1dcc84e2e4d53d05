"""The routing snapshot: all that a gateway worker needs to serve, immutable and numbered.

The control plane writes it, the gateway only reads it. It carries key hashes and signing keys, but no provider secret.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from headway.domain.metric import FeedbackMetric
from headway.domain.release import Bundle, Deployment
from headway.ids import Signer

Unit = Literal["conversation", "user", "request"]
Scope = Literal["invoke", "pin", "delegate", "feedback", "view", "admin"]
SCOPES: tuple[Scope, ...] = ("invoke", "pin", "delegate", "feedback", "view", "admin")


class ReleaseRoute(msgspec.Struct, frozen=True):
    """A release as the gateway serves it; ``deployments`` are in order of preference and never empty."""

    number: int
    name: str
    bundle: Bundle
    deployments: tuple[Deployment, ...]


class ShadowRoute(msgspec.Struct, frozen=True):
    """The shadow stage: this part of the requests (0 to 1) is mirrored to the candidate after its answer has gone out.

    ``paused`` stops the mirroring: the rollout is paused, or its budget is used up.
    """

    sample: float
    paused: bool = False


class RolloutRoute(msgspec.Struct, frozen=True):
    """A running rollout: units below ``share`` (0 to 1) go to the candidate.

    Attributes:
        number: Number of the rollout.
        candidate: Number of the candidate release.
        salt: Decides which units go first.
        stage: Stratum that interactions are booked under; 0 in the shadow stage.
        share: The candidate's.
        kind: A ``headway.ids.Kind``: how interactions that it assigns are booked.
        shadow: In the shadow stage: what is mirrored.
        stable_when_lost: A gateway that is cut off from the controller serves stable; else it keeps the share.
    """

    number: int
    candidate: int
    salt: bytes
    stage: int
    share: float
    kind: int
    shadow: ShadowRoute | None = None
    stable_when_lost: bool = False


class ApplicationRoute(msgspec.Struct, frozen=True):
    """An application and where its traffic goes.

    Attributes:
        number: Number of the application.
        name: What clients send as ``model``.
        unit: What is assigned to an arm and stays there.
        stable: Number of the stable release.
        rollout: The running rollout, if there is one.
        releases: Names of all releases that may be pinned, with their numbers.
        record_content: Whether prompts and answers are stored, or metadata only.
        metrics: Feedback metrics by name.
        retention_days: Days after which interactions are dropped.
    """

    number: int
    name: str
    unit: Unit
    stable: int
    rollout: RolloutRoute | None
    releases: dict[str, int]
    record_content: bool
    metrics: dict[str, FeedbackMetric]
    retention_days: int


class KeyRoute(msgspec.Struct, frozen=True):
    """An API key: its hash, what it may do and how much.

    Attributes:
        number: Number of the key.
        name: Name given at creation.
        scopes: What it may do.
        applications: Applications it may call; empty for all.
        requests_per_minute: 0 is no limit.
        concurrency: Requests in flight; 0 is no limit.
        monthly_usd: Hard cap of cost per calendar month (UTC); None is no cap.
        expires_unix_ms: When it ends; None never.
        groups: Whose labelled documents its callers see; with the scope ``delegate`` a request may name others.
    """

    number: int
    name: str
    scopes: tuple[Scope, ...]
    applications: tuple[str, ...] = ()
    requests_per_minute: int = 0
    concurrency: int = 0
    monthly_usd: float | None = None
    expires_unix_ms: int | None = None
    groups: tuple[str, ...] = ()


class SigningKeys(msgspec.Struct, frozen=True):
    """Keys for interaction ids, and the one for units."""

    keys: dict[int, bytes]
    active: int
    unit_key: bytes

    def signer(self) -> Signer:
        """Make the signer that issues and reads interaction ids."""
        return Signer(self.keys, self.active, self.unit_key)


class Snapshot(msgspec.Struct, frozen=True):
    """Everything a gateway worker serves by.

    Attributes:
        number: Grows with every change.
        unix_ms: When it was made.
        applications: By name.
        releases: By number; every release that an application names.
        keys: By SHA-256 of the key, in hexadecimal. Revoked keys are in ``revoked``.
        revoked: Hashes of revoked keys, so that their holders are told so.
        signing: Keys for interaction ids.
    """

    number: int
    unix_ms: int
    applications: dict[str, ApplicationRoute]
    releases: dict[int, ReleaseRoute]
    keys: dict[str, KeyRoute]
    revoked: tuple[str, ...]
    signing: SigningKeys


def encode_snapshot(snapshot: Snapshot) -> bytes:
    """Write a snapshot as JSON."""
    return msgspec.json.encode(snapshot)


def decode_snapshot(body: bytes) -> Snapshot:
    """Read a snapshot back.

    Raises:
        msgspec.ValidationError: It is not one.
    """
    return msgspec.json.decode(body, type=Snapshot)
