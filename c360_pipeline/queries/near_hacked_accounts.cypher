// question: Which accounts share a payment method with a hacked account, and an address with others?
// columns: one row per account that pays with the card of a hacked one, and the accounts that watch from its addresses
// chart: account number_of_others
MATCH (hacked:Account {tenant_id: $tenant_id, status: 'hacked'})
    -[:HAS_PAYMENT_METHOD]->(card:PaymentMethod {tenant_id: $tenant_id})
MATCH (same:PaymentMethod {tenant_id: $tenant_id})<-[:HAS_PAYMENT_METHOD]-(account:Account {tenant_id: $tenant_id})
WHERE same.card_fingerprint = card.card_fingerprint AND account <> hacked
WITH account, collect(DISTINCT hacked) AS hacked_accounts
MATCH (account)-[:WATCHED]->(play:PlayEvent {tenant_id: $tenant_id})
WITH account, hacked_accounts, collect(DISTINCT play.ip_address) AS addresses
MATCH (other:Account {tenant_id: $tenant_id})-[:WATCHED]->(there:PlayEvent {tenant_id: $tenant_id})
WHERE there.ip_address IN addresses AND other <> account
WITH account, hacked_accounts, addresses, other ORDER BY other.email
WITH account, hacked_accounts, addresses, collect(DISTINCT other.email) AS others
RETURN account.email AS account, [h IN hacked_accounts | h.email] AS hacked_accounts, addresses, others AS shared_with,
       size(others) AS number_of_others
ORDER BY number_of_others DESC, account
LIMIT $limit
