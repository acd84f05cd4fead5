-- MovieLens' viewers as accounts.
CREATE TABLE accounts (
    account_id integer PRIMARY KEY,
    email      text NOT NULL UNIQUE,
    age        integer NOT NULL,
    gender     text NOT NULL,
    occupation text NOT NULL,
    zip_code   text NOT NULL
);
