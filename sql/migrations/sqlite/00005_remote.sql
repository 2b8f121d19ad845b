-- Subscriptions that this server holds at others, with the newest document of each.

-- +goose Up
CREATE TABLE remote_subscription (
    id            TEXT    NOT NULL PRIMARY KEY,
    shard         INTEGER NOT NULL,
    event         TEXT    NOT NULL,
    resource      TEXT    NOT NULL,
    watcher       TEXT    NOT NULL,
    call_id       TEXT    NOT NULL,
    local_uri     TEXT    NOT NULL,
    remote_tag    TEXT    NOT NULL,
    remote_target TEXT    NOT NULL,
    route_set     TEXT    NOT NULL,
    accept        TEXT    NOT NULL,
    remote_cseq   INTEGER NOT NULL,
    cseq_ceiling  INTEGER NOT NULL,
    state         INTEGER NOT NULL, -- 0 unknown, 1 pending, 2 active
    leaving       INTEGER NOT NULL, -- 0 or 1
    content_type  TEXT    NOT NULL,
    body          BLOB    NOT NULL,
    want_ms       INTEGER NOT NULL,
    created_ms    INTEGER NOT NULL,
    expires_ms    INTEGER NOT NULL
) STRICT;

-- +goose Down
DROP TABLE remote_subscription;
