// Constraints and indexes of the graph. Statements end with a semicolon; the script can be applied again.
CREATE CONSTRAINT user_key IF NOT EXISTS FOR (n:User) REQUIRE (n.tenant_id, n.id) IS UNIQUE;
CREATE CONSTRAINT session_key IF NOT EXISTS FOR (n:Session) REQUIRE (n.tenant_id, n.id) IS UNIQUE;
CREATE CONSTRAINT action_key IF NOT EXISTS FOR (n:Action) REQUIRE (n.tenant_id, n.id) IS UNIQUE;
CREATE CONSTRAINT event_key IF NOT EXISTS FOR (n:Event) REQUIRE (n.tenant_id, n.id) IS UNIQUE;
CREATE CONSTRAINT product_key IF NOT EXISTS FOR (n:Product) REQUIRE (n.tenant_id, n.id) IS UNIQUE;
CREATE CONSTRAINT category_key IF NOT EXISTS FOR (n:Category) REQUIRE (n.tenant_id, n.name) IS UNIQUE;
CREATE CONSTRAINT correlation_key IF NOT EXISTS FOR (n:Correlation) REQUIRE (n.tenant_id, n.id) IS UNIQUE;
CREATE CONSTRAINT journey_key IF NOT EXISTS FOR (n:Journey) REQUIRE (n.tenant_id, n.id) IS UNIQUE;
CREATE CONSTRAINT checkpoint_key IF NOT EXISTS FOR (n:ProjectionCheckpoint) REQUIRE (n.projection, n.source) IS UNIQUE;
CREATE INDEX product_category IF NOT EXISTS FOR (n:Product) ON (n.category);
CREATE INDEX user_community IF NOT EXISTS FOR (n:User) ON (n.tenant_id, n.community);
CREATE INDEX user_last_seen IF NOT EXISTS FOR (n:User) ON (n.tenant_id, n.last_seen);
CREATE INDEX account_email IF NOT EXISTS FOR (n:Account) ON (n.tenant_id, n.email);
CREATE INDEX event_id IF NOT EXISTS FOR (n:Event) ON (n.id);
CREATE INDEX event_waiting IF NOT EXISTS FOR (n:Event) ON (n.status);
CREATE INDEX viewed_last_interaction IF NOT EXISTS FOR ()-[r:VIEWED]-() ON (r.last_interaction);
CREATE INDEX purchased_last_interaction IF NOT EXISTS FOR ()-[r:PURCHASED]-() ON (r.last_interaction);
