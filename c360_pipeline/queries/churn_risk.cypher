// question: Which paying customers are about to leave?
// columns: one row per active subscription, the quietest first
// now: the day that the last 30 days are counted from
// chart: risk count
MATCH (account:Account {tenant_id: $tenant_id})
    -[:HAS_SUBSCRIPTION]->(subscription:Subscription {tenant_id: $tenant_id})
WHERE toLower(subscription.status) = 'active'
WITH account, $now - duration({days: 30}) AS since
WITH account,
     COUNT { MATCH (account)-[:WATCHED]->(play:PlayEvent {tenant_id: $tenant_id})
             WHERE since < play.event_timestamp <= $now } AS recent_streams,
     COUNT { MATCH (account)-[:SUBMITTED]->(ticket:Ticket {tenant_id: $tenant_id})
             WHERE since < ticket.created_at <= $now } AS recent_tickets
RETURN account.email AS email, recent_streams, recent_tickets,
       duration.inMonths(account.created_at, $now).months AS months,
       CASE WHEN recent_streams = 0 AND recent_tickets > 0 THEN 'high: problems and no use'
            WHEN recent_streams = 0 THEN 'high: no use'
            WHEN recent_streams < 5 THEN 'medium: little use'
            ELSE 'low' END AS risk
ORDER BY recent_streams, recent_tickets DESC, email
LIMIT $limit
