-- +goose Up
-- The table is Kamailio's and OpenSIPS's as well as ours: their names, their types, and when one of them has made it
-- already, it stays as it is. Which of the columns are there is found out by looking.
CREATE TABLE IF NOT EXISTS subscriber (
    id             serial       NOT NULL PRIMARY KEY,
    username       varchar(64)  NOT NULL DEFAULT '',
    domain         varchar(255) NOT NULL DEFAULT '',
    password       varchar(64)  NOT NULL DEFAULT '', -- never written by us
    ha1            varchar(128) NOT NULL DEFAULT '',
    ha1b           varchar(128) NOT NULL DEFAULT '',
    ha1_sha256     varchar(64)  NOT NULL DEFAULT '',
    ha1_sha512t256 varchar(64)  NOT NULL DEFAULT '',
    CONSTRAINT subscriber_account_idx UNIQUE (username, domain)
);

-- +goose Down
-- The table stays: the users in it may be another program's, whoever made it. Up finds it again.
SELECT 1;
