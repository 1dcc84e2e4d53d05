"""A small installation in the database: two applications, a running rollout, API keys, a snapshot."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any

import msgspec
from psycopg.types.json import Jsonb

from headway.clock import ManualClock, utc
from headway.domain.metric import BUILT_IN_FEEDBACK, FeedbackMetric
from headway.domain.release import Bundle, Deployment, Endpoint
from headway.domain.snapshot import KeyRoute, Scope, Snapshot
from headway.ids import InteractionId, Kind, uuid7
from headway.storage import keys, routing
from headway.storage.database import Database

RETENTION_DAYS = 90
METRICS = {
    **BUILT_IN_FEEDBACK,
    "mood": FeedbackMetric(kind="label", labels=("happy", "sad")),
    "minutes_saved": FeedbackMetric(kind="positive"),
    "grounded": FeedbackMetric(kind="binary", end_users=False),
}
_ENDPOINT = Endpoint(provider="openai", base_url="http://127.0.0.1:9/v1", model="m")


@dataclass(frozen=True)
class World:
    """The installation. ``secrets`` are API keys by name."""

    database: Database
    clock: ManualClock
    snapshot: Snapshot
    secrets: dict[str, str]

    def key(self, name: str) -> KeyRoute:
        return next(key for key in self.snapshot.keys.values() if key.name == name)

    def headers(self, name: str | None = None) -> dict[bytes, bytes]:
        headers = {b"content-type": b"application/json"}
        if name is not None:
            headers[b"authorization"] = f"Bearer {self.secrets[name]}".encode()
        return headers

    def interaction(self, *, application: str = "support", age_days: float = 0.0, **changes: Any) -> InteractionId:
        """An interaction of the running rollout's candidate, begun some days ago."""
        route = self.snapshot.applications[application]
        rollout = route.rollout
        interaction = InteractionId(
            kind=Kind.MANUAL,
            uuid=uuid7(self.clock.unix_ms() - int(age_days * 86_400_000)),
            application=route.number,
            release=route.stable if rollout is None else rollout.candidate,
            rollout=0 if rollout is None else rollout.number,
            stage=0 if rollout is None else rollout.stage,
            arm=0 if rollout is None else 1,
            choice=0,
            unit=self.snapshot.signing.signer().hash_unit("ann"),
            key=1,
        )
        return interaction._replace(**changes)

    def issue(self, **changes: Any) -> str:
        """The id that an answer would carry."""
        return self.snapshot.signing.signer().issue(self.interaction(**changes))

    async def record(
        self, interaction: InteractionId, conversation: str = "", *, content: tuple[str, str] | None = None
    ) -> None:
        """Write an interaction as the recorder would."""
        at = utc(interaction.unix_ms)
        request, answer = content or (None, None)
        async with self.database.connection() as connection:
            await connection.execute("SELECT ensure_interaction_partition(%s)", (at.date(),))
            await connection.execute(
                "INSERT INTO interaction (at, id, application, release, rollout, stage, arm, kind, unit, own_unit, key,"
                " conversation, operation, stream, status, release_error, aborted, refused, filtered, deployment,"
                " attempts, attempt_errors, fallback, input_tokens, output_tokens, cost_usd, first_token_ms, total_ms,"
                " overhead_ms, queue_ms, request, answer) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, false, %s, %s,"
                " 'chat', false, 200, false, false, false, false, 'd', 1, 0, false, 1, 2, 0.001, 5, 12, 1, 0, %s, %s)",
                (
                    at,
                    uuid.UUID(bytes=interaction.uuid),
                    interaction.application,
                    interaction.release,
                    interaction.rollout,
                    interaction.stage,
                    interaction.arm,
                    interaction.kind,
                    interaction.unit,
                    interaction.key,
                    conversation,
                    request,
                    answer,
                ),
            )


async def found_world(database: Database, clock: ManualClock | None = None) -> World:
    """Fill a migrated database."""
    async with database.connection() as connection:
        for number, (name, metrics) in enumerate({"support": METRICS, "sales": BUILT_IN_FEEDBACK}.items(), start=1):
            await connection.execute(
                "INSERT INTO application (name, unit, policy, record_content, retention_days, metrics)"
                " VALUES (%s, 'conversation', 'manual', true, %s, %s)",
                (name, RETENTION_DAYS, Jsonb(msgspec.to_builtins(metrics))),
            )
            for release in ("calm", "bold"):
                bundle = Bundle(deployments=(("d", _ENDPOINT),), prompt=f"Be {release}, {name}.")
                await connection.execute(
                    "INSERT INTO release (application_id, name, content_hash, bundle, deployments, created_by)"
                    " VALUES (%s, %s, %s, %s, %s, 'ann')",
                    (
                        number,
                        release,
                        bundle.content_hash(),
                        Jsonb(msgspec.to_builtins(bundle)),
                        Jsonb(msgspec.to_builtins([Deployment("d", _ENDPOINT)])),
                    ),
                )
            await connection.execute(
                "UPDATE application SET stable_release = (SELECT min(id) FROM release WHERE application_id = %s)"
                " WHERE id = %s",
                (number, number),
            )
        await connection.execute(
            "INSERT INTO rollout (application_id, stable_release, candidate_release, kind, policy, salt, state, stage,"
            " share) VALUES (1, 1, 2, %s, '{\"name\": \"manual\"}', %s, 'running', 1, 0.5)",
            (Kind.MANUAL, b"s" * 16),
        )
        await connection.execute(
            "INSERT INTO rollout_stage (rollout_id, stage, share, author, reason) VALUES (1, 1, 0.5, 'ann', 'try')"
        )
        secrets = {}
        grants: dict[str, tuple[tuple[Scope, ...], tuple[str, ...]]] = {
            "developer": (("invoke", "feedback"), ()),
            "colleague": (("feedback",), ()),
            "seller": (("feedback",), ("sales",)),
            "caller": (("invoke",), ()),
            "viewer": (("view",), ()),
            "operator": (("admin",), ()),
        }
        for name, (scopes, applications) in grants.items():
            _, secrets[name] = await keys.create(connection, keys.Grant(name, scopes, applications), author="ann")
        snapshot = await routing.latest(connection)
    assert snapshot is not None
    return World(database, clock or ManualClock(), snapshot, secrets)
