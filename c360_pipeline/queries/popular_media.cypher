// question: What is watched most, and watched to its end?
// columns: one row per title
// chart: title starts
MATCH (media:Media {tenant_id: $tenant_id})<-[:PLAYED]-(play:PlayEvent {tenant_id: $tenant_id})
WITH media, count(CASE WHEN toLower(play.action) IN ['play', 'start'] THEN 1 END) AS starts,
     count(CASE WHEN toLower(play.action) IN ['stop', 'finish'] THEN 1 END) AS ends
WHERE starts > 0
RETURN media.title AS title, media.genre AS genre, media.media_type AS media_type, media.release_date AS released,
       starts, ends, round(100.0 * ends / starts, 1) AS ended_percent
ORDER BY starts DESC, title
LIMIT $limit
