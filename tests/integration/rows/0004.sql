-- What a Headway at revision 0004 would have written; every later migration must carry it over.
INSERT INTO configuration (applied_by, source, spec, hash)
VALUES ('ann', 'applications: {}', '{"deployments": {}}', 'h');
INSERT INTO application (name, unit, policy, record_content, retention_days, metrics)
VALUES ('support', 'conversation', 'manual', true, 90, '{}');
INSERT INTO release (application_id, name, content_hash, bundle, deployments, created_by)
SELECT application.id, version, version, '{"deployments": []}', '[]', 'ann'
FROM application, unnest(ARRAY['r-1', 'r-2']) AS version;
UPDATE application SET stable_release = (SELECT id FROM release WHERE name = 'r-1');
INSERT INTO rollout (application_id, stable_release, candidate_release, kind, policy, salt, state, stage, share)
SELECT application.id, stable_release, (SELECT id FROM release WHERE name = 'r-2'), 3, '"manual"', 'salt', 'running',
       1, 0.1 FROM application;
INSERT INTO rollout_stage (rollout_id, stage, share, author, reason) SELECT id, 1, 0.1, 'ann', 'try' FROM rollout;
INSERT INTO api_key (name, hash, hint, scopes, created_by) VALUES ('ci', 'hash', 'hw-', '{invoke}', 'ann');
INSERT INTO signing_key (number, purpose, secret) VALUES (0, 'unit', 'u'), (1, 'id', 'k');
SELECT ensure_interaction_partition('2026-01-02');
INSERT INTO interaction (at, id, application, release, rollout, stage, arm, kind, unit, own_unit, key, conversation,
    operation, stream, status, release_error, aborted, refused, filtered, deployment, attempts, attempt_errors,
    fallback, total_ms, overhead_ms, queue_ms)
VALUES ('2026-01-02 03:04:05Z', '019b7d00-0000-7000-8000-000000000001', 1, 1, 1, 1, 0, 3, 'unit', false, 1, 'c',
    'chat', false, 200, false, false, false, false, 'd', 1, 0, false, 12, 1, 0);
INSERT INTO audit_log (author, action, subject) VALUES ('ann', 'share.set', 'support');
INSERT INTO rollout (application_id, stable_release, candidate_release, kind, policy, salt, state, stage, share, terms,
                     status, version, tick, books, restarts, started_by, shadow_usd, ended_at)
SELECT application.id, stable_release, (SELECT id FROM release WHERE name = 'r-2'), 1, '"careful"', 'salt',
       'rolled_back', 2, 0, '{}', '{}', 3, 7, 'books', 1, 'ann', 0.5, now() FROM application;
INSERT INTO rollout_stage (rollout_id, stage, share, author, reason, phase, ratio_epoch)
SELECT max(id), 1, 0.01, 'controller', 'started', 'ramp', 0 FROM rollout;
INSERT INTO block (rollout_id, tick, at, body) SELECT max(id), 7, now(), 'blocks' FROM rollout;
INSERT INTO decision (rollout_id, number, tick, at, author, outcome, reason, message, metric, before, after, assessment)
SELECT max(id), 1, 7, now(), 'controller', 'roll_back', 'harm', 'too slow', 'latency_p95', '{}', '{}', '{}' FROM rollout;
INSERT INTO figure (rollout_id, tick, at, status, assessment) SELECT max(id), 7, now(), '{}', '{}' FROM rollout;
INSERT INTO rating (rollout, metric, unit, feedback, stage, period, arm, settles_at, tick)
SELECT max(id), 'thumbs_up', 'unit', gen_random_uuid(), 1, now(), 1, now(), NULL FROM rollout;
INSERT INTO response (rollout, stage, period, arm, unit, kind) SELECT max(id), 1, now(), 1, 'unit', 'report' FROM rollout;
INSERT INTO webhook_delivery (id, created_at, event, url, secret, body, next_at)
VALUES (gen_random_uuid(), now(), 'rollout.rolled_back', 'https://example.com', 'env:HOOK', '{}', now());
INSERT INTO search_index (name) VALUES ('handbook');
INSERT INTO index_version (index_id, number, state, spec, dimensions, figures, manifest, manifest_hash, created_by, ended_at)
SELECT id, 1, 'published', '{}', 256, '{}', '{}', 'm', 'ann', now() FROM search_index;
INSERT INTO index_document (version_id, path, content_hash, size_bytes, title, modified, metadata, groups, state, chunks)
SELECT id, 'leave.md', 'h', 12, 'Leave', '2026-01-02T03:04:05Z', '{"team": "hr"}', '{hr}', 'loaded', 1 FROM index_version;
INSERT INTO index_word (version_id, word, chunks) SELECT id, 'leav', 2 FROM index_version;
UPDATE api_key SET groups = '{hr}';
UPDATE interaction SET retrieval_ms = 3, passages = 1, context_tokens = 40, cited = true, retrieved = '{1}';
INSERT INTO response_link (id, at, provider_id, deployment, conversation, unit_name, groups)
VALUES ('01900000-0000-7000-8000-000000000001', now(), 'resp_1', 'main', 'c1', 'u1', 'f00d');
