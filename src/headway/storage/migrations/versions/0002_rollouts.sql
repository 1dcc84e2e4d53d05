-- Rollouts under a policy: state, books, decisions.
ALTER TABLE rollout
    ADD COLUMN terms    jsonb,                          -- headway.domain.recording.Terms; null: the policy `manual`
    ADD COLUMN status   jsonb,                          -- headway.domain.rollout.Status; null: the policy `manual`
    ADD COLUMN version  bigint NOT NULL DEFAULT 0,      -- compare-and-set of every change
    ADD COLUMN tick     bigint NOT NULL DEFAULT 0,      -- of the controller: how often it has booked
    ADD COLUMN books    bytea,                          -- headway.domain.books.Books: follows from the blocks, and what is open
    ADD COLUMN restarts integer NOT NULL DEFAULT 0,     -- earlier rollouts of this candidate that were rolled back
    ADD COLUMN started_by text NOT NULL DEFAULT '',
    ADD COLUMN shadow_usd double precision NOT NULL DEFAULT 0;  -- what mirrored answers have cost
COMMENT ON COLUMN rollout.state IS 'running (manual) | headway.domain.rollout.State';

ALTER TABLE rollout_stage
    ADD COLUMN phase text NOT NULL DEFAULT 'ramp',      -- headway.domain.rollout.Phase
    ADD COLUMN ratio_epoch integer NOT NULL DEFAULT 0;

-- Evidence knows its exposure period (an hour, or shorter under a short feedback window), and the tick that booked it.
ALTER TABLE evidence RENAME COLUMN hour TO period;
ALTER TABLE evidence ADD COLUMN tick bigint;
CREATE INDEX evidence_unclaimed ON evidence (rollout, id) WHERE tick IS NULL;

-- What closed at a tick: never regrouped, never deleted. Replay reads exactly these.
CREATE TABLE block (
    rollout_id  integer NOT NULL REFERENCES rollout,
    tick        bigint NOT NULL,
    at          timestamptz NOT NULL,
    body        bytea NOT NULL,         -- headway.domain.books.Books.collect
    PRIMARY KEY (rollout_id, tick)
);

-- Decisions that changed something, or changed why nothing changes.
CREATE TABLE decision (
    rollout_id  integer NOT NULL REFERENCES rollout,
    number      integer NOT NULL,
    tick        bigint NOT NULL,
    at          timestamptz NOT NULL,
    author      text NOT NULL,          -- `controller`, or who asked
    outcome     text NOT NULL,
    reason      text NOT NULL,
    message     text NOT NULL,
    metric      text,
    command     text,                   -- headway.domain.rollout.Command; null: the controller decided
    words       text NOT NULL DEFAULT '',   -- of the person who asked
    before      jsonb NOT NULL,         -- headway.domain.rollout.Status
    after       jsonb NOT NULL,
    assessment  jsonb,                  -- headway.domain.assessment.Assessment; null where nothing was assessed
    PRIMARY KEY (rollout_id, number)
);

-- Figures over time, for people to look at.
CREATE TABLE figure (
    rollout_id  integer NOT NULL REFERENCES rollout,
    tick        bigint NOT NULL,
    at          timestamptz NOT NULL,
    status      jsonb NOT NULL,
    assessment  jsonb NOT NULL,
    PRIMARY KEY (rollout_id, tick)
);

-- A unit's first value of a metric in a rollout (booking rule 4); written with the feedback, booked once it has settled.
CREATE TABLE rating (
    rollout     integer NOT NULL,
    metric      text NOT NULL,
    unit        bytea NOT NULL,
    feedback    uuid NOT NULL,          -- the first value; a correction before `settles_at` wins
    stage       integer NOT NULL,
    period      timestamptz NOT NULL,   -- of exposure
    arm         smallint NOT NULL,
    settles_at  timestamptz NOT NULL,
    tick        bigint,
    PRIMARY KEY (rollout, metric, unit)
);
CREATE INDEX rating_unsettled ON rating (rollout, settles_at) WHERE tick IS NULL;

-- Units that gave feedback, or reported, by the period of the exposure it was about (booking rule 5).
CREATE TABLE response (
    rollout     integer NOT NULL,
    stage       integer NOT NULL,
    period      timestamptz NOT NULL,
    arm         smallint NOT NULL,
    unit        bytea NOT NULL,
    kind        text NOT NULL CHECK (kind IN ('feedback', 'report')),
    PRIMARY KEY (rollout, stage, period, arm, unit, kind)
);

-- Webhooks: an outbox, written with the decision.
CREATE TABLE webhook_delivery (
    id          uuid PRIMARY KEY,
    created_at  timestamptz NOT NULL,
    event       text NOT NULL,          -- "rollout.advanced", ...
    url         text NOT NULL,
    secret      text,                   -- a reference, never a secret
    body        text NOT NULL,
    attempts    integer NOT NULL DEFAULT 0,
    next_at     timestamptz,            -- null: delivered or given up
    delivered_at timestamptz,
    problem     text
);
CREATE INDEX webhook_due ON webhook_delivery (next_at) WHERE next_at IS NOT NULL;

-- A mirrored answer names the interaction that it mirrors.
ALTER TABLE interaction ADD COLUMN mirror_of uuid;
CREATE INDEX interaction_mirror_of ON interaction (mirror_of) WHERE mirror_of IS NOT NULL;
