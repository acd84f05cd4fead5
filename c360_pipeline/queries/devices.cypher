// question: Which devices are used most, by how many people, and with how much trouble?
// columns: one row per device; the tickets are those of all its users about technical or playback problems
// chart: device streams
MATCH (account:Account {tenant_id: $tenant_id})-[:WATCHED]->(play:PlayEvent {tenant_id: $tenant_id})
WITH play.device_fingerprint AS device, count(play) AS streams, collect(DISTINCT account) AS accounts
ORDER BY streams DESC, device
LIMIT $limit
CALL (accounts) {
    UNWIND accounts AS account
    MATCH (account)-[:SUBMITTED]->(ticket:Ticket {tenant_id: $tenant_id})-[:TAGGED_WITH]->(tag:Tag {tenant_id: $tenant_id})
    WHERE tag.tag_name IN ['Technical', 'Playback']
    RETURN count(DISTINCT ticket) AS technical_tickets
}
RETURN device, streams, size(accounts) AS users, technical_tickets
ORDER BY streams DESC, device
