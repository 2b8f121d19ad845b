-- The tables of OpenSIPS 3.x as its documentation describes them: CHAR columns, no from_user, NULL where Kamailio has none.
CREATE TABLE presentity (
    id INTEGER PRIMARY KEY, username CHAR(64) NOT NULL, domain CHAR(64) NOT NULL, event CHAR(64) NOT NULL, etag CHAR(64) NOT NULL,
    expires INTEGER NOT NULL, received_time INTEGER NOT NULL, body BLOB, extra_hdrs BLOB, sender CHAR(255),
    UNIQUE (username, domain, event, etag)
);
CREATE TABLE active_watchers (
    id INTEGER PRIMARY KEY, presentity_uri CHAR(255) NOT NULL, watcher_username CHAR(64) NOT NULL, watcher_domain CHAR(64) NOT NULL,
    to_user CHAR(64) NOT NULL, to_domain CHAR(64) NOT NULL, event CHAR(64) NOT NULL, event_id CHAR(64), to_tag CHAR(64) NOT NULL,
    from_tag CHAR(64) NOT NULL, callid CHAR(64) NOT NULL, local_cseq INTEGER NOT NULL, remote_cseq INTEGER NOT NULL, contact CHAR(255) NOT NULL,
    record_route TEXT, expires INTEGER NOT NULL, status INTEGER NOT NULL, reason CHAR(64), version INTEGER NOT NULL,
    socket_info CHAR(64) NOT NULL, local_contact CHAR(255) NOT NULL, UNIQUE (presentity_uri, callid, to_tag, from_tag)
);
CREATE TABLE rls_watchers (
    id INTEGER PRIMARY KEY, presentity_uri CHAR(255) NOT NULL, to_user CHAR(64) NOT NULL, to_domain CHAR(64) NOT NULL,
    watcher_username CHAR(64) NOT NULL, watcher_domain CHAR(64) NOT NULL, event CHAR(64) NOT NULL, event_id CHAR(64), to_tag CHAR(64) NOT NULL,
    from_tag CHAR(64) NOT NULL, callid CHAR(64) NOT NULL, local_cseq INTEGER NOT NULL, remote_cseq INTEGER NOT NULL, contact CHAR(64) NOT NULL,
    record_route TEXT, expires INTEGER NOT NULL, status INTEGER NOT NULL, reason CHAR(64) NOT NULL, version INTEGER NOT NULL,
    socket_info CHAR(64) NOT NULL, local_contact CHAR(255) NOT NULL, UNIQUE (presentity_uri, callid, to_tag, from_tag)
);
CREATE TABLE watchers (
    id INTEGER PRIMARY KEY, presentity_uri CHAR(255) NOT NULL, watcher_username CHAR(64) NOT NULL, watcher_domain CHAR(64) NOT NULL,
    event CHAR(64) NOT NULL, status INTEGER NOT NULL, reason CHAR(64), inserted_time INTEGER NOT NULL
);
CREATE TABLE xcap (
    id INTEGER PRIMARY KEY, username CHAR(64) NOT NULL, domain CHAR(64) NOT NULL, doc BLOB NOT NULL, doc_type INTEGER NOT NULL,
    etag CHAR(64) NOT NULL, source INTEGER NOT NULL, doc_uri CHAR(255) NOT NULL, port INTEGER NOT NULL, UNIQUE (username, domain, doc_type, doc_uri)
);
CREATE TABLE pua (
    id INTEGER PRIMARY KEY, pres_uri CHAR(255) NOT NULL, pres_id CHAR(255) NOT NULL, event INTEGER NOT NULL, expires INTEGER NOT NULL,
    desired_expires INTEGER NOT NULL, flag INTEGER NOT NULL, etag CHAR(64), tuple_id CHAR(64), watcher_uri CHAR(255), to_uri CHAR(255),
    call_id CHAR(64), to_tag CHAR(64), from_tag CHAR(64), cseq INTEGER, record_route TEXT, contact CHAR(255), remote_contact CHAR(255),
    version INTEGER, extra_headers TEXT
);
CREATE TABLE subscriber (
    id INTEGER PRIMARY KEY, username CHAR(64) NOT NULL DEFAULT '', domain CHAR(64) NOT NULL DEFAULT '', password CHAR(25) NOT NULL DEFAULT '',
    email_address CHAR(64) NOT NULL DEFAULT '', ha1 CHAR(64) NOT NULL DEFAULT '', ha1_sha256 CHAR(64) NOT NULL DEFAULT '',
    ha1_sha512t256 CHAR(64) NOT NULL DEFAULT '', UNIQUE (username, domain)
);
