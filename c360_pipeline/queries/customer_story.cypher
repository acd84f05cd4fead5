// question: What is there to know about one customer?
// columns: one row per subscription of the account
// email = john.smith@email.com: of the account
MATCH (account:Account {tenant_id: $tenant_id, email: $email})
OPTIONAL MATCH (account)-[:HAS_SUBSCRIPTION]->(subscription:Subscription {tenant_id: $tenant_id})
    -[:SUBSCRIBED_TO]->(plan:Plan {tenant_id: $tenant_id})
WITH account, subscription, plan,
     [(account)-[:HAS_PAYMENT_METHOD]->(card) | card.card_type + ' •••• ' + card.card_last_four] AS payment,
     COLLECT { MATCH (account)-[:SUBMITTED]->(:Ticket {tenant_id: $tenant_id})-[:TAGGED_WITH]->(tag:Tag {tenant_id: $tenant_id})
               RETURN DISTINCT tag.tag_name ORDER BY tag.tag_name } AS ticket_topics
RETURN account.email AS email, account.created_at AS signed_up, plan.plan_name AS plan, subscription.status AS status,
       payment,
       COUNT { MATCH (account)-[:WATCHED]->(:PlayEvent {tenant_id: $tenant_id})-[:PLAYED]->(m:Media {tenant_id: $tenant_id}) RETURN DISTINCT m } AS titles,
       COUNT { (account)-[:WATCHED]->(:PlayEvent {tenant_id: $tenant_id}) } AS streams,
       COUNT { (account)-[:SUBMITTED]->(:Ticket {tenant_id: $tenant_id}) } AS tickets, ticket_topics
ORDER BY plan
LIMIT $limit
