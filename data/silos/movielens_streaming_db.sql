-- MovieLens' films.
CREATE TABLE media (
    media_id     integer PRIMARY KEY,
    title        text NOT NULL,
    genre        text NOT NULL,
    media_type   text NOT NULL,
    release_year integer
);
