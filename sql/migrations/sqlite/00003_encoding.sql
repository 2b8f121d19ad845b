-- The content coding of a watcher's NOTIFYs (RFC 3261 section 20.2).

-- +goose Up
ALTER TABLE subscription ADD COLUMN encoding TEXT NOT NULL DEFAULT '';

-- +goose Down
ALTER TABLE subscription DROP COLUMN encoding;
