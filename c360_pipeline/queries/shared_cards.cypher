// question: Which accounts pay with the same card?
// columns: one row per pair of accounts
// chart: card_type count
MATCH (card:PaymentMethod {tenant_id: $tenant_id})<-[:HAS_PAYMENT_METHOD]-(account:Account {tenant_id: $tenant_id})
WITH card.card_fingerprint AS fingerprint, card.card_type AS card_type, card.card_last_four AS last_four,
     account ORDER BY account.account_id
WITH fingerprint, card_type, last_four, collect(DISTINCT account) AS accounts
WHERE size(accounts) > 1
UNWIND range(0, size(accounts) - 2) AS first
UNWIND range(first + 1, size(accounts) - 1) AS second
RETURN accounts[first].email AS account, accounts[second].email AS other_account, card_type,
       '***' + last_four AS card, fingerprint
ORDER BY fingerprint, account, other_account
LIMIT $limit
