-- +goose Up
CREATE TABLE subscription (
    id             TEXT    NOT NULL PRIMARY KEY,
    shard          INTEGER NOT NULL,
    event          TEXT    NOT NULL,
    event_id       TEXT    NOT NULL,
    resource       TEXT    NOT NULL,
    watcher        TEXT    NOT NULL,
    call_id        TEXT    NOT NULL,
    local_uri      TEXT    NOT NULL,
    remote_uri     TEXT    NOT NULL,
    remote_tag     TEXT    NOT NULL,
    remote_target  TEXT    NOT NULL,
    route_set      TEXT    NOT NULL,
    local_contact  TEXT    NOT NULL,
    flow           TEXT    NOT NULL,
    accept         TEXT    NOT NULL,
    user_agent     TEXT    NOT NULL,
    remote_cseq    INTEGER NOT NULL,
    cseq_ceiling   INTEGER NOT NULL,
    version_offset INTEGER NOT NULL,
    list           INTEGER NOT NULL, -- 0 or 1
    created_ms     INTEGER NOT NULL,
    expires_ms     INTEGER NOT NULL
) STRICT;

CREATE TABLE publication (
    resource     TEXT    NOT NULL,
    event        TEXT    NOT NULL,
    id           TEXT    NOT NULL,
    etag         TEXT    NOT NULL,
    content_type TEXT    NOT NULL,
    body         BLOB    NOT NULL,
    seq          INTEGER NOT NULL,
    updated_ms   INTEGER NOT NULL,
    expires_ms   INTEGER NOT NULL,
    PRIMARY KEY (resource, event, id)
) STRICT;

CREATE TABLE document (
    selector     TEXT    NOT NULL PRIMARY KEY,
    etag         TEXT    NOT NULL,
    content_type TEXT    NOT NULL,
    body         BLOB    NOT NULL,
    updated_ms   INTEGER NOT NULL
) STRICT;

CREATE TABLE meta (
    key   TEXT NOT NULL PRIMARY KEY,
    value TEXT NOT NULL
) STRICT;

-- +goose Down
DROP TABLE meta;
DROP TABLE document;
DROP TABLE publication;
DROP TABLE subscription;
