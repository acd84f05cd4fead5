// question: At which hours is there most to do?
// columns: one row per hour of the day, UTC; the level compares it with an even day
// chart: hour streams
MATCH (play:PlayEvent {tenant_id: $tenant_id})
WITH datetime({datetime: play.event_timestamp, timezone: 'UTC'}).hour AS hour, count(play) AS streams
WITH collect({hour: hour, streams: streams}) AS hours, sum(streams) / 24.0 AS even
UNWIND hours AS h
RETURN h.hour AS hour, h.streams AS streams,
       CASE WHEN h.streams > 2 * even THEN 'peak' WHEN h.streams > even THEN 'high' WHEN h.streams > even / 2 THEN 'medium'
            ELSE 'low' END AS level
ORDER BY hour
LIMIT $limit
