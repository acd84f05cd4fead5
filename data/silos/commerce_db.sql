-- A shop's users, products and transactions; not in the control database until somebody adds its rows.
CREATE TABLE users (
    id         text PRIMARY KEY,
    email      text NOT NULL UNIQUE,
    created_at timestamptz NOT NULL
);
CREATE TABLE products (
    id       text PRIMARY KEY,
    name     text NOT NULL,
    category text NOT NULL,
    price    numeric(10, 2) NOT NULL
);
CREATE TABLE transactions (
    id         bigint PRIMARY KEY,
    user_id    text NOT NULL REFERENCES users,
    product_id text NOT NULL REFERENCES products,
    amount     numeric(10, 2) NOT NULL,
    status     text NOT NULL,
    created_at timestamptz NOT NULL
);
