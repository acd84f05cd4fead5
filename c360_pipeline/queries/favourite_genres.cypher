// question: Which genres does each customer like best?
// columns: one row per account with its three most played genres
// chart: favourite count
MATCH (account:Account {tenant_id: $tenant_id})-[:WATCHED]->(play:PlayEvent {tenant_id: $tenant_id})
    -[:PLAYED]->(media:Media {tenant_id: $tenant_id})
WITH account, media.genre AS genre, count(play) AS plays
ORDER BY plays DESC, genre
WITH account, collect({genre: genre, plays: plays})[..3] AS best
RETURN account.email AS email, account.full_name AS full_name, best[0].genre AS favourite,
       [b IN best | b.genre + ' (' + b.plays + ')'] AS genres
ORDER BY email
LIMIT $limit
