-- The support desk: tickets by e-mail address, tagged.
CREATE TABLE tickets (
    ticket_id      integer PRIMARY KEY,
    customer_email text NOT NULL,
    subject        text NOT NULL,
    body           text NOT NULL,
    status         text NOT NULL,
    priority       text NOT NULL,
    created_at     timestamptz NOT NULL,
    resolved_at    timestamptz
);
CREATE TABLE tags (
    tag_id   integer PRIMARY KEY,
    tag_name text NOT NULL UNIQUE
);
CREATE TABLE ticket_tags (
    ticket_id integer NOT NULL REFERENCES tickets,
    tag_id    integer NOT NULL REFERENCES tags,
    PRIMARY KEY (ticket_id, tag_id)
);
