-- What was played, where and when.
CREATE TABLE media (
    media_id         integer PRIMARY KEY,
    title            text NOT NULL,
    genre            text NOT NULL,
    media_type       text NOT NULL,
    release_date     date NOT NULL,
    duration_minutes integer NOT NULL
);
CREATE TABLE play_events (
    play_event_id      bigint PRIMARY KEY,
    account_id         integer NOT NULL,
    media_id           integer NOT NULL REFERENCES media,
    action             text NOT NULL,
    event_timestamp    timestamptz NOT NULL,
    device_fingerprint text NOT NULL,
    ip_address         inet NOT NULL,
    position_seconds   integer NOT NULL
);
