"""The tables of the book in PostgreSQL, and how a claim is taken there: from nothing to the newest version."""

from __future__ import annotations

from typing import Final

from cra_middleware._postgres import Layout

# Claims need no log: a database that died forgets them, and then no answer is kept that was decided before.
# What clients name is kept as bytes: a text column holds no NUL and no half letters.
_FIRST = """
CREATE TABLE cra_book_sessions (
    session_id bytea PRIMARY KEY, agent_id bytea NOT NULL, creator bytea NOT NULL, goal bytea NOT NULL,
    created_us bigint NOT NULL, ended_us bigint, atlas_ids bytea NOT NULL, parent_session_id bytea,
    metadata bytea NOT NULL, context bytea NOT NULL);
CREATE INDEX cra_book_newest ON cra_book_sessions (created_us, session_id);
CREATE INDEX cra_book_newest_of ON cra_book_sessions (creator, created_us, session_id);
CREATE INDEX cra_book_open ON cra_book_sessions (created_us, session_id) WHERE ended_us IS NULL;
CREATE INDEX cra_book_below ON cra_book_sessions (parent_session_id)
    WHERE ended_us IS NULL AND parent_session_id IS NOT NULL;
CREATE TABLE cra_book_answers (
    session_id bytea NOT NULL, key bytea NOT NULL, digest text NOT NULL, status integer NOT NULL, body bytea NOT NULL,
    approval_id text, retry_after_seconds double precision, at_us bigint NOT NULL, PRIMARY KEY (session_id, key));
CREATE INDEX cra_book_oldest ON cra_book_answers (at_us);
CREATE UNLOGGED TABLE cra_book_claims (
    session_id bytea NOT NULL, key bytea NOT NULL, holder text NOT NULL, until timestamptz NOT NULL,
    PRIMARY KEY (session_id, key));
CREATE INDEX cra_book_held ON cra_book_claims (holder);
CREATE INDEX cra_book_left ON cra_book_claims (until);
CREATE TABLE cra_book_executions (
    execution_id bytea PRIMARY KEY, session_id bytea NOT NULL, caller bytea NOT NULL, deadline_us bigint NOT NULL,
    report text);
CREATE INDEX cra_book_waiting ON cra_book_executions (deadline_us) WHERE report IS NULL;
CREATE INDEX cra_book_told ON cra_book_executions (deadline_us) WHERE report IS NOT NULL;
"""
_SECOND = """
ALTER TABLE cra_book_sessions ADD COLUMN is_expired boolean NOT NULL DEFAULT FALSE;
DROP INDEX cra_book_below;
CREATE INDEX cra_book_below ON cra_book_sessions (parent_session_id, ended_us) WHERE parent_session_id IS NOT NULL;
"""
# A function, because each of its statements sees what was kept while the one before it waited: an answer is kept in the
# step that ends its claim, so whoever has the claim sees it. Two statements of ours would be two round trips.
_THIRD = """
CREATE FUNCTION cra_book_claim(
    asked_session bytea, asked_key bytea, asked_holder text, lease double precision,
    OUT digest text, OUT status integer, OUT body bytea, OUT approval_id text, OUT retry_after_seconds double precision)
RETURNS SETOF record LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO cra_book_claims AS known (session_id, key, holder, until)
        VALUES (asked_session, asked_key, asked_holder, clock_timestamp() + make_interval(secs => lease))
        ON CONFLICT (session_id, key) DO UPDATE SET holder = EXCLUDED.holder, until = EXCLUDED.until
        WHERE known.until < clock_timestamp() OR known.holder = EXCLUDED.holder;
    IF FOUND THEN
        RETURN QUERY SELECT kept.digest, kept.status, kept.body, kept.approval_id, kept.retry_after_seconds
            FROM (SELECT) AS taken LEFT JOIN cra_book_answers AS kept
            ON kept.session_id = asked_session AND kept.key = asked_key;
    END IF;
END $$;
"""
# Where the traces are in the same database, how long the session's is can be told with the claim: whoever has read that
# far need not ask whether others have written. The first function stays: servers of the version before still run.
_FOURTH = """
CREATE FUNCTION cra_book_claim_and_look(
    asked_session bytea, asked_key bytea, asked_holder text, lease double precision,
    OUT digest text, OUT status integer, OUT body bytea, OUT approval_id text, OUT retry_after_seconds double precision,
    OUT trace_size bigint)
RETURNS SETOF record LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO cra_book_claims AS known (session_id, key, holder, until)
        VALUES (asked_session, asked_key, asked_holder, clock_timestamp() + make_interval(secs => lease))
        ON CONFLICT (session_id, key) DO UPDATE SET holder = EXCLUDED.holder, until = EXCLUDED.until
        WHERE known.until < clock_timestamp() OR known.holder = EXCLUDED.holder;
    IF FOUND THEN
        RETURN QUERY SELECT kept.digest, kept.status, kept.body, kept.approval_id, kept.retry_after_seconds,
            (SELECT trace.size FROM cra_sessions AS trace WHERE trace.session_id = convert_from(asked_session, 'UTF8'))
            FROM (SELECT) AS taken LEFT JOIN cra_book_answers AS kept
            ON kept.session_id = asked_session AND kept.key = asked_key;
    END IF;
END $$;
"""
LAYOUT: Final = Layout("cra_book_layout", (_FIRST, _SECOND, _THIRD, _FOURTH))
