// question: What does each plan bring in a month?
// columns: one row per plan with active subscribers
// chart: plan monthly_revenue
MATCH (plan:Plan {tenant_id: $tenant_id})<-[:SUBSCRIBED_TO]-(subscription:Subscription {tenant_id: $tenant_id})
    <-[:HAS_SUBSCRIPTION]-(account:Account {tenant_id: $tenant_id})
WHERE toLower(subscription.status) = 'active'
WITH plan, collect(DISTINCT account) AS accounts
WITH plan, size(accounts) AS subscribers,
     reduce(total = 0, a IN accounts | total + COUNT { (a)-[:WATCHED]->(:PlayEvent {tenant_id: $tenant_id}) }) AS streams
RETURN plan.plan_name AS plan, subscribers, round(toFloat(plan.monthly_fee) * subscribers, 2) AS monthly_revenue,
       round(toFloat(streams) / subscribers, 1) AS streams_per_subscriber, plan.max_devices AS max_devices
ORDER BY monthly_revenue DESC, plan
LIMIT $limit
