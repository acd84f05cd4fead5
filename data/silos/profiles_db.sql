-- Accounts, plans, subscriptions and payment methods of a streaming service.
CREATE TABLE accounts (
    account_id      integer PRIMARY KEY,
    email           text NOT NULL UNIQUE,
    full_name       text NOT NULL,
    hashed_password text NOT NULL,
    phone           text,
    country         text NOT NULL,
    status          text NOT NULL,
    created_at      timestamptz NOT NULL
);
CREATE TABLE plans (
    plan_id     integer PRIMARY KEY,
    plan_name   text NOT NULL,
    monthly_fee numeric(8, 2) NOT NULL,
    max_devices integer NOT NULL
);
CREATE TABLE subscriptions (
    subscription_id integer PRIMARY KEY,
    account_id      integer NOT NULL REFERENCES accounts,
    plan_id         integer NOT NULL REFERENCES plans,
    status          text NOT NULL,
    started_at      timestamptz NOT NULL,
    renews_on       date
);
CREATE TABLE payment_methods (
    payment_method_id integer PRIMARY KEY,
    account_id        integer NOT NULL REFERENCES accounts,
    card_type         text NOT NULL,
    card_last_four    text NOT NULL,
    card_fingerprint  text NOT NULL,
    expires_on        date NOT NULL,
    is_default        boolean NOT NULL
);
