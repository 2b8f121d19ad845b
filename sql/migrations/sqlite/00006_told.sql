-- A digest of what a watcher was told, by a stop in order; 0 is not known.

-- +goose Up
ALTER TABLE subscription ADD COLUMN told INTEGER NOT NULL DEFAULT 0;

-- +goose Down
ALTER TABLE subscription DROP COLUMN told;
