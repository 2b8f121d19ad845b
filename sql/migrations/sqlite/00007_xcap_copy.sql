-- What XCAP servers said last, for a start while they are down. It may be emptied at any time.

-- +goose Up
CREATE TABLE xcap_copy (
    root     TEXT    NOT NULL,
    selector TEXT    NOT NULL,
    missing  INTEGER NOT NULL, -- 0 or 1: there is no such document
    etag     TEXT    NOT NULL,
    body     BLOB    NOT NULL,
    PRIMARY KEY (root, selector)
) STRICT;

-- +goose Down
DROP TABLE xcap_copy;
