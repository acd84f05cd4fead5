-- Control rows for MovieLens: two tables, one of them with a column that stays out.
INSERT INTO source_databases (database_id, tenant_id, db_name, host, port, db_user, password_ref) VALUES
    (1, :tenant, 'profiles_db',  :host, :port, :user, 'env:C360_SOURCE_SAMPLE_PASSWORD'),
    (2, :tenant, 'streaming_db', :host, :port, :user, 'env:C360_SOURCE_SAMPLE_PASSWORD');
INSERT INTO source_tables (table_id, database_id, table_name, key_columns) VALUES
    (1, 1, 'accounts', '{account_id}'),
    (2, 2, 'media',    '{media_id}');
INSERT INTO field_exclusion_rules (table_id, column_name, reason) VALUES
    (1, 'zip_code', 'where somebody lives is not needed for any question');
INSERT INTO node_label_mappings (table_id, node_label) VALUES (1, 'Account'), (2, 'Media');
INSERT INTO relationship_mappings (from_label, to_label, relationship_type, join_condition) VALUES
    ('User', 'Account', 'IS_ACCOUNT', 'u.id = toString(a.account_id)');
