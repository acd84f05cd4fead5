// question: What is each customer worth, and how much do they use?
// columns: one row per account and subscription, the most valuable first
// now: the day that months are counted to
// chart: segment count
MATCH (account:Account {tenant_id: $tenant_id})
OPTIONAL MATCH (account)-[:HAS_SUBSCRIPTION]->(:Subscription {tenant_id: $tenant_id})
    -[:SUBSCRIBED_TO]->(plan:Plan {tenant_id: $tenant_id})
WITH account, plan,
     COUNT { (account)-[:WATCHED]->(:PlayEvent {tenant_id: $tenant_id}) } AS streams,
     COUNT { MATCH (account)-[:WATCHED]->(:PlayEvent {tenant_id: $tenant_id})-[:PLAYED]->(media:Media {tenant_id: $tenant_id}) RETURN DISTINCT media }
         AS titles,
     COUNT { (account)-[:SUBMITTED]->(:Ticket {tenant_id: $tenant_id}) } AS tickets,
     duration.inMonths(account.created_at, $now).months AS months
RETURN account.email AS email, account.full_name AS full_name, plan.plan_name AS plan,
       round(toFloat(plan.monthly_fee) * months, 2) AS estimated_revenue, streams, titles, tickets, months,
       CASE WHEN streams > 20 THEN 'power user' WHEN streams > 10 THEN 'regular user' WHEN streams > 0 THEN 'casual user'
            ELSE 'at risk: no activity' END AS segment
ORDER BY coalesce(estimated_revenue, 0) DESC, email, plan
LIMIT $limit
