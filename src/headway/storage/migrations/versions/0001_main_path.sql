-- Configuration: every applied file, who and when.
CREATE TABLE configuration (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    applied_at  timestamptz NOT NULL DEFAULT now(),
    applied_by  text NOT NULL,
    source      text NOT NULL,          -- headway.yaml as applied
    spec        jsonb NOT NULL,         -- the same, parsed and frozen, prompts included
    hash        text NOT NULL
);

CREATE TABLE application (
    id              integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name            text NOT NULL UNIQUE,
    retired_at      timestamptz,        -- no longer in the applied file: not served, but its records stay
    unit            text NOT NULL,
    policy          text NOT NULL,
    record_content  boolean NOT NULL,
    retention_days  integer NOT NULL,
    metrics         jsonb NOT NULL,
    stable_release  integer
);

-- Immutable: rows are inserted, never updated. Deployments are kept whole, so that a release can still be served
-- when the file no longer names its deployment; the current file's operation settings win while it does.
CREATE TABLE release (
    id              integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    application_id  integer NOT NULL REFERENCES application,
    name            text NOT NULL,
    content_hash    text NOT NULL,
    bundle          jsonb NOT NULL,
    deployments     jsonb NOT NULL,
    created_at      timestamptz NOT NULL DEFAULT now(),
    created_by      text NOT NULL,
    UNIQUE (application_id, content_hash),
    UNIQUE (application_id, name)
);
ALTER TABLE application ADD FOREIGN KEY (stable_release) REFERENCES release;

CREATE TABLE rollout (
    id              integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    application_id  integer NOT NULL REFERENCES application,
    stable_release  integer NOT NULL REFERENCES release,
    candidate_release integer NOT NULL REFERENCES release,
    kind            smallint NOT NULL,  -- headway.ids.Kind
    policy          jsonb NOT NULL,     -- frozen at the start
    salt            bytea NOT NULL,
    state           text NOT NULL,      -- running | promoted | rolled_back
    stage           integer NOT NULL,
    share           double precision NOT NULL CHECK (share BETWEEN 0 AND 1),
    started_at      timestamptz NOT NULL DEFAULT now(),
    ended_at        timestamptz,
    CHECK (stable_release <> candidate_release)
);
CREATE UNIQUE INDEX one_active_rollout ON rollout (application_id) WHERE ended_at IS NULL;

CREATE TABLE rollout_stage (
    rollout_id  integer NOT NULL REFERENCES rollout,
    stage       integer NOT NULL,
    share       double precision NOT NULL,
    since       timestamptz NOT NULL DEFAULT now(),
    author      text NOT NULL,
    reason      text NOT NULL,
    PRIMARY KEY (rollout_id, stage)
);

CREATE TABLE routing_snapshot (
    number      bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    created_at  timestamptz NOT NULL DEFAULT now(),
    body        bytea NOT NULL
);

CREATE TABLE api_key (
    id              integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name            text NOT NULL,
    hash            text NOT NULL UNIQUE,   -- SHA-256 of 256 random bits, in hexadecimal
    hint            text NOT NULL,          -- first characters, to recognise it by
    scopes          text[] NOT NULL,
    applications    text[] NOT NULL DEFAULT '{}',
    requests_per_minute integer NOT NULL DEFAULT 0,
    concurrency     integer NOT NULL DEFAULT 0,
    monthly_usd     double precision,
    created_at      timestamptz NOT NULL DEFAULT now(),
    created_by      text NOT NULL,
    expires_at      timestamptz,
    revoked_at      timestamptz
);

CREATE TABLE key_usage (
    key_id      integer NOT NULL REFERENCES api_key,
    month       date NOT NULL,
    requests    bigint NOT NULL DEFAULT 0,
    cost_usd    double precision NOT NULL DEFAULT 0,
    PRIMARY KEY (key_id, month)
);

-- Headway's own keys: they sign interaction ids (purpose 'id') and hash units (purpose 'unit', never rotates).
CREATE TABLE signing_key (
    number      smallint PRIMARY KEY,
    purpose     text NOT NULL,
    secret      bytea NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now(),
    retired_at  timestamptz
);

-- The day partition comes from the id's time. No foreign keys: partitions come and go, writes must stay cheap.
CREATE TABLE interaction (
    at                  timestamptz NOT NULL,
    id                  uuid NOT NULL,
    application         integer NOT NULL,
    release             integer NOT NULL,
    rollout             integer NOT NULL,
    stage               integer NOT NULL,
    arm                 smallint NOT NULL,
    kind                smallint NOT NULL,
    unit                bytea NOT NULL,
    own_unit            boolean NOT NULL,
    key                 integer NOT NULL,
    conversation        text NOT NULL,
    user_id             text,
    operation           text NOT NULL,
    stream              boolean NOT NULL,
    status              smallint NOT NULL,
    error               text,
    release_error       boolean NOT NULL,
    aborted             boolean NOT NULL,
    refused             boolean NOT NULL,
    filtered            boolean NOT NULL,
    deployment          text NOT NULL,
    attempts            smallint NOT NULL,
    attempt_errors      smallint NOT NULL,
    fallback            boolean NOT NULL,
    provider_id         text,
    provider_model      text,
    provider_fingerprint text,
    finish_reason       text,
    input_tokens        integer,
    cached_tokens       integer,
    output_tokens       integer,
    cost_usd            double precision,
    first_token_ms      real,
    total_ms            real NOT NULL,
    overhead_ms         real NOT NULL,
    queue_ms            real NOT NULL,
    request             text,
    answer              text,
    PRIMARY KEY (at, id)
) PARTITION BY RANGE (at);
CREATE INDEX interaction_conversation ON interaction (application, conversation, at DESC);
CREATE INDEX interaction_release ON interaction (application, release, at DESC);

-- Made apart and attached: unlike CREATE TABLE ... PARTITION OF, that waits for no reader and makes no writer wait.
CREATE FUNCTION ensure_interaction_partition(day date) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    name text := 'interaction_' || to_char(day, 'YYYYMMDD');
BEGIN
    IF to_regclass(name) IS NOT NULL THEN RETURN; END IF;
    PERFORM pg_advisory_xact_lock(hashtext('ensure_interaction_partition'));
    -- Not to_regclass: it may still remember what was true before the wait.
    IF EXISTS (SELECT FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid
               WHERE inhparent = 'interaction'::regclass AND relname = name) THEN RETURN; END IF;
    EXECUTE format('CREATE TABLE %I (LIKE interaction INCLUDING ALL)', name);
    EXECUTE format('ALTER TABLE interaction ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)', name,
                   day::timestamp AT TIME ZONE 'UTC', (day + 1)::timestamp AT TIME ZONE 'UTC');
END $$;

-- A batch that is here has been counted, whatever the writer believes.
CREATE TABLE recorder_batch (
    worker      uuid NOT NULL,
    sequence    bigint NOT NULL,
    at          timestamptz NOT NULL DEFAULT now(),
    interactions integer NOT NULL,
    PRIMARY KEY (worker, sequence)
);

-- Units of running rollouts: first exposure, first events (statistics, booking rule 3).
CREATE TABLE unit_state (
    rollout     integer NOT NULL,
    unit        bytea NOT NULL,
    arm         smallint NOT NULL,      -- of the first exposure
    stage       integer NOT NULL,       -- of the first exposure
    first_at    timestamptz NOT NULL,
    events      integer NOT NULL,       -- bit i: headway.domain.metric.EVENT_METRICS[i]
    latency_bins smallint[] NOT NULL,   -- highest log-histogram bin of total_ms seen, per arm
    PRIMARY KEY (rollout, unit)
);

CREATE TABLE evidence (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    rollout     integer NOT NULL,
    stage       integer NOT NULL,
    hour        timestamptz NOT NULL,   -- of exposure
    arm         smallint NOT NULL,
    recorded_at timestamptz NOT NULL DEFAULT now(),
    counts      jsonb NOT NULL          -- headway.domain.evidence.Counts
);
CREATE INDEX evidence_key ON evidence (rollout, id);

-- The provider's own id of a stored response, to translate previous_response_id.
CREATE TABLE response_link (
    id          uuid PRIMARY KEY,       -- of the interaction
    at          timestamptz NOT NULL,
    provider_id text NOT NULL,
    deployment  text NOT NULL,
    conversation text NOT NULL,
    unit_name   text NOT NULL
);
CREATE INDEX response_link_at ON response_link (at);

-- Append-only: a later value of the same (target, metric, author) supersedes the earlier, both stay.
CREATE TABLE feedback (
    id              uuid PRIMARY KEY,
    at              timestamptz NOT NULL,
    target          text NOT NULL CHECK (target IN ('interaction', 'conversation')),
    target_id       text NOT NULL,      -- interaction uuid, or conversation id
    choice          smallint NOT NULL DEFAULT 0,
    application     integer NOT NULL,
    release         integer NOT NULL,
    rollout         integer NOT NULL,
    stage           integer NOT NULL,
    arm             smallint NOT NULL,
    kind            smallint NOT NULL,
    unit            bytea NOT NULL,
    exposed_at      timestamptz NOT NULL,
    metric          text NOT NULL,
    number          double precision,
    text            text,
    comment         text,
    correction      text,
    source          text NOT NULL CHECK (source IN ('end_user', 'developer', 'annotator', 'judge')),
    author          text NOT NULL,
    key             integer NOT NULL,   -- 0: sent with the interaction id alone
    superseded_at   timestamptz
);
CREATE UNIQUE INDEX feedback_current ON feedback (application, target, target_id, choice, metric, author)
    WHERE superseded_at IS NULL;
CREATE INDEX feedback_at ON feedback (at DESC, id DESC);
CREATE INDEX feedback_application ON feedback (application, at DESC, id DESC);
CREATE INDEX feedback_target ON feedback (target_id);

CREATE TABLE report (
    id              uuid PRIMARY KEY,
    at              timestamptz NOT NULL,
    application     integer,
    title           text NOT NULL,
    description     text NOT NULL,
    severity        text NOT NULL CHECK (severity IN ('low', 'medium', 'high', 'critical')),
    status          text NOT NULL CHECK (status IN ('open', 'triaged', 'resolved', 'rejected')),
    author          text NOT NULL,
    key             integer NOT NULL,
    version         integer NOT NULL DEFAULT 1,     -- compare-and-set
    updated_at      timestamptz NOT NULL
);
CREATE INDEX report_at ON report (at DESC, id DESC);
CREATE INDEX report_key ON report (key, at DESC, id DESC);

CREATE TABLE report_interaction (
    report_id       uuid NOT NULL REFERENCES report,
    interaction     uuid NOT NULL,
    interaction_id  text NOT NULL,
    release         integer NOT NULL,
    exposed_at      timestamptz NOT NULL,
    PRIMARY KEY (report_id, interaction)
);

-- Comments and changes, in the order in which they took effect.
CREATE TABLE report_event (
    report_id       uuid NOT NULL REFERENCES report,
    number          integer NOT NULL,
    at              timestamptz NOT NULL,
    author          text NOT NULL,
    comment         text,
    status          text,
    severity        text,
    PRIMARY KEY (report_id, number)
);

CREATE TABLE audit_log (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at          timestamptz NOT NULL DEFAULT now(),
    author      text NOT NULL,
    action      text NOT NULL,          -- "share.set", "key.create", ...
    subject     text NOT NULL,
    reason      text,
    detail      jsonb NOT NULL DEFAULT '{}'
);
