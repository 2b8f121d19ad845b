-- Subscriptions that this server holds at others, with the newest document of each.

-- +goose Up
CREATE TABLE remote_subscription (
    id            text COLLATE "C" NOT NULL PRIMARY KEY,
    shard         smallint NOT NULL,
    event         text     NOT NULL,
    resource      text     NOT NULL,
    watcher       text     NOT NULL,
    call_id       text     NOT NULL,
    local_uri     text     NOT NULL,
    remote_tag    text     NOT NULL,
    remote_target text     NOT NULL,
    route_set     text     NOT NULL,
    accept        text     NOT NULL,
    remote_cseq   bigint   NOT NULL,
    cseq_ceiling  bigint   NOT NULL,
    state         smallint NOT NULL, -- 0 unknown, 1 pending, 2 active
    leaving       boolean  NOT NULL,
    content_type  text     NOT NULL,
    body          bytea    NOT NULL,
    want_ms       bigint   NOT NULL,
    created_ms    bigint   NOT NULL,
    expires_ms    bigint   NOT NULL
) WITH (fillfactor = 70);

-- +goose Down
DROP TABLE remote_subscription;
