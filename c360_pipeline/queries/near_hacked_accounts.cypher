// question: Which accounts share a payment method with a hacked account, and an address with others?
// columns: one row per account that pays with the card of a hacked one, and the accounts that watch from its addresses
// chart: account number_of_others
MATCH (hacked:Account {tenant_id: $tenant_id, status: 'hacked'})
    -[:HAS_PAYMENT_METHOD]->(card:PaymentMethod {tenant_id: $tenant_id})
MATCH (same:PaymentMethod {tenant_id: $tenant_id})<-[:HAS_PAYMENT_METHOD]-(account:Account {tenant_id: $tenant_id})
WHERE same.card_fingerprint = card.card_fingerprint AND account <> hacked
WITH DISTINCT account, hacked.email AS email ORDER BY email
WITH account, collect(email) AS hacked_accounts
MATCH (account)-[:WATCHED]->(play:PlayEvent {tenant_id: $tenant_id})
WITH DISTINCT account, hacked_accounts, play.ip_address AS address ORDER BY address
WITH account, hacked_accounts, collect(address) AS addresses
MATCH (other:Account {tenant_id: $tenant_id})-[:WATCHED]->(there:PlayEvent {tenant_id: $tenant_id})
WHERE there.ip_address IN addresses AND other <> account
WITH DISTINCT account, hacked_accounts, addresses, other.email AS other ORDER BY other
WITH account, hacked_accounts, addresses, collect(other) AS others
RETURN account.email AS account, hacked_accounts, addresses, others AS shared_with, size(others) AS number_of_others
ORDER BY number_of_others DESC, account
LIMIT $limit
