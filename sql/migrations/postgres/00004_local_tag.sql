-- Our tag of a dialog that another server began.

-- +goose Up
ALTER TABLE subscription ADD COLUMN local_tag text NOT NULL DEFAULT '';

-- +goose Down
ALTER TABLE subscription DROP COLUMN local_tag;
