-- What XCAP servers said last, for a start while they are down. It may be emptied at any time.

-- +goose Up
CREATE TABLE xcap_copy (
    root     text COLLATE "C" NOT NULL,
    selector text COLLATE "C" NOT NULL,
    missing  boolean NOT NULL, -- there is no such document
    etag     text    NOT NULL,
    body     bytea   NOT NULL,
    PRIMARY KEY (root, selector)
);

-- +goose Down
DROP TABLE xcap_copy;
