// question: What did customers with the same purchases buy besides?
// columns: one row per product that the customer has not bought, the best first by the integration guide's score
// user = john.smith@email.com: the customer's user id
// chart: product score
MATCH (user:User {tenant_id: $tenant_id, id: $user})-[:PURCHASED]->(:Product {tenant_id: $tenant_id})
    <-[:PURCHASED]-(similar:User {tenant_id: $tenant_id})-[bought:PURCHASED]->(product:Product {tenant_id: $tenant_id})
WHERE NOT EXISTS { (user)-[:PURCHASED]->(product) }
WITH product, count(DISTINCT similar) AS similar_users, sum(bought.count) AS strength
RETURN product.id AS product_id, coalesce(product.name, product.id) AS product, product.category AS category,
       similar_users, strength, 10 * similar_users + strength AS score
ORDER BY score DESC, product_id
LIMIT $limit
