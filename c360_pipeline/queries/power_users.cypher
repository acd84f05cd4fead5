// question: Who buys most?
// columns: one row per user who bought enough different products
// min_products = 5: different products that a user must have bought
// chart: user_id total_spent
MATCH (user:User {tenant_id: $tenant_id})-[bought:PURCHASED]->(product:Product {tenant_id: $tenant_id})
WITH user, count(product) AS products, sum(bought.count) AS purchases, sum(bought.count * product.price) AS spent
WHERE products >= $min_products
OPTIONAL MATCH (user)-[:IS_ACCOUNT]->(account:Account {tenant_id: $tenant_id})
RETURN user.id AS user_id, account.email AS email, products, purchases, round(spent, 2) AS total_spent
ORDER BY total_spent DESC, user_id
LIMIT $limit
