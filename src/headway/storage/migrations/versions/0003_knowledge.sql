-- Knowledge: search indexes, their immutable versions, documents and chunks.
CREATE TABLE search_index (
    id          integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name        text NOT NULL UNIQUE,
    retired_at  timestamptz
);

CREATE TABLE index_version (
    id          integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    index_id    integer NOT NULL REFERENCES search_index,
    number      integer NOT NULL,       -- NAME@number
    state       text NOT NULL,          -- headway.domain.knowledge.IndexState
    spec        jsonb NOT NULL,         -- frozen: lake, subset, chunker, embedder
    dimensions  integer,                -- of its vectors
    stage       text NOT NULL DEFAULT '',   -- of the build: headway.storage.builds.Stage
    progress    jsonb NOT NULL DEFAULT '{}',
    figures     jsonb,                  -- headway.storage.partitions.Figures; once its chunks are indexed
    manifest    jsonb,                  -- once published; its hash identifies the content
    manifest_hash text,
    problem     text,
    created_at  timestamptz NOT NULL DEFAULT now(),
    created_by  text NOT NULL,
    ended_at    timestamptz,
    UNIQUE (index_id, number)
);
CREATE UNIQUE INDEX one_build_per_index ON index_version (index_id) WHERE state = 'building';

CREATE TABLE index_document (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    version_id  integer NOT NULL REFERENCES index_version ON DELETE CASCADE,
    path        text NOT NULL,
    content_hash text NOT NULL,      -- empty until it was read
    size_bytes  bigint NOT NULL,
    title       text NOT NULL DEFAULT '',
    modified    text NOT NULL DEFAULT '',
    etag        text NOT NULL DEFAULT '',   -- as it was listed: has it changed since?
    metadata    jsonb NOT NULL DEFAULT '{}',
    groups      text[] NOT NULL DEFAULT '{}',
    state       text NOT NULL,          -- listed | loaded | skipped
    problem     text,                   -- why it was skipped
    chunks      integer NOT NULL DEFAULT 0,
    UNIQUE (version_id, path)
);

-- How many chunks of a version have a word, for those that more than one has: rare words weigh more.
CREATE TABLE index_word (
    version_id  integer NOT NULL REFERENCES index_version ON DELETE CASCADE,
    word        text COLLATE "C" NOT NULL,  -- as the text search configuration reduces it
    chunks      integer NOT NULL,
    PRIMARY KEY (version_id, word)
);

ALTER TABLE api_key ADD COLUMN groups text[] NOT NULL DEFAULT '{}';

-- What retrieval did for an interaction.
ALTER TABLE interaction
    ADD COLUMN retrieval_ms real,
    ADD COLUMN passages smallint,
    ADD COLUMN context_tokens integer,
    ADD COLUMN retrieval_error text,
    ADD COLUMN cited boolean,
    ADD COLUMN retrieved bigint[];

-- A unit's highest bins: those of retrieval, under stable and under the candidate, come after the others.
UPDATE unit_state SET latency_bins = latency_bins || ARRAY[-32768, -32768]::smallint[];
