// question: Who watches most?
// columns: one row per account
// chart: full_name streams
MATCH (account:Account {tenant_id: $tenant_id})-[:WATCHED]->(play:PlayEvent {tenant_id: $tenant_id})
    -[:PLAYED]->(media:Media {tenant_id: $tenant_id})
WITH account, count(DISTINCT play) AS streams, count(DISTINCT media) AS titles, collect(DISTINCT media.genre) AS genres
ORDER BY streams DESC, account.email
LIMIT $limit
UNWIND genres AS genre
WITH account, streams, titles, genre ORDER BY genre
WITH account, streams, titles, collect(genre) AS genres
RETURN account.email AS email, account.full_name AS full_name, streams, titles, size(genres) AS genre_count, genres
ORDER BY streams DESC, email
