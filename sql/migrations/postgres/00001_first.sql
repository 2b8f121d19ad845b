-- +goose Up
-- Room in each page lets a refresh, which touches no index, stay in its page.
CREATE TABLE subscription (
    id             text COLLATE "C" NOT NULL PRIMARY KEY,
    shard          smallint NOT NULL,
    event          text     NOT NULL,
    event_id       text     NOT NULL,
    resource       text     NOT NULL,
    watcher        text     NOT NULL,
    call_id        text     NOT NULL,
    local_uri      text     NOT NULL,
    remote_uri     text     NOT NULL,
    remote_tag     text     NOT NULL,
    remote_target  text     NOT NULL,
    route_set      text     NOT NULL,
    local_contact  text     NOT NULL,
    flow           text     NOT NULL,
    accept         text     NOT NULL,
    user_agent     text     NOT NULL,
    remote_cseq    bigint   NOT NULL,
    cseq_ceiling   bigint   NOT NULL,
    version_offset bigint   NOT NULL,
    list           boolean  NOT NULL,
    created_ms     bigint   NOT NULL,
    expires_ms     bigint   NOT NULL
) WITH (fillfactor = 70);

CREATE TABLE publication (
    resource     text COLLATE "C" NOT NULL,
    event        text COLLATE "C" NOT NULL,
    id           text COLLATE "C" NOT NULL,
    etag         text   NOT NULL,
    content_type text   NOT NULL,
    body         bytea  NOT NULL,
    seq          bigint NOT NULL,
    updated_ms   bigint NOT NULL,
    expires_ms   bigint NOT NULL,
    PRIMARY KEY (resource, event, id)
) WITH (fillfactor = 70);

CREATE TABLE document (
    selector     text COLLATE "C" NOT NULL PRIMARY KEY,
    etag         text   NOT NULL,
    content_type text   NOT NULL,
    body         bytea  NOT NULL,
    updated_ms   bigint NOT NULL
);

CREATE TABLE meta (
    key   text COLLATE "C" NOT NULL PRIMARY KEY,
    value text NOT NULL
);

-- +goose Down
DROP TABLE meta;
DROP TABLE document;
DROP TABLE publication;
DROP TABLE subscription;
