-- What the sample's control database asks for. :tenant, :host, :port and :user are filled in by `c360 seed`.
INSERT INTO source_databases (database_id, tenant_id, db_name, host, port, db_user, password_ref) VALUES
    (1, :tenant, 'profiles_db',  :host, :port, :user, 'env:C360_SOURCE_SAMPLE_PASSWORD'),
    (2, :tenant, 'streaming_db', :host, :port, :user, 'env:C360_SOURCE_SAMPLE_PASSWORD'),
    (3, :tenant, 'support_db',   :host, :port, :user, 'env:C360_SOURCE_SAMPLE_PASSWORD');

INSERT INTO source_tables (table_id, database_id, table_name, key_columns, cursor_column) VALUES
    (1, 1, 'accounts',        '{account_id}',        'created_at'),
    (2, 1, 'plans',           '{plan_id}',           NULL),
    (3, 1, 'subscriptions',   '{subscription_id}',   NULL),
    (4, 1, 'payment_methods', '{payment_method_id}', NULL),
    (5, 2, 'media',           '{media_id}',          NULL),
    (6, 2, 'play_events',     '{play_event_id}',     'event_timestamp'),
    (7, 3, 'tickets',         '{ticket_id}',         'created_at'),
    (8, 3, 'tags',            '{tag_id}',            NULL),
    (9, 3, 'ticket_tags',     '{ticket_id,tag_id}',  NULL);

INSERT INTO field_exclusion_rules (table_id, column_name, reason) VALUES
    (1, 'hashed_password', 'a credential'),
    (1, 'phone',           'not needed for any question'),
    (7, 'body',            'free text that customers wrote');

INSERT INTO node_label_mappings (table_id, node_label) VALUES
    (1, 'Account'), (2, 'Plan'), (3, 'Subscription'), (4, 'PaymentMethod'), (5, 'Media'), (6, 'PlayEvent'),
    (7, 'Ticket'), (8, 'Tag'), (9, 'TicketTagLink');

INSERT INTO relationship_mappings (from_label, to_label, relationship_type, join_condition, via_label) VALUES
    ('Account',      'PaymentMethod', 'HAS_PAYMENT_METHOD', 'a.account_id = pm.account_id', NULL),
    ('Account',      'Subscription',  'HAS_SUBSCRIPTION',   'a.account_id = s.account_id', NULL),
    ('Subscription', 'Plan',          'SUBSCRIBED_TO',      's.plan_id = p.plan_id', NULL),
    ('PlayEvent',    'Media',         'PLAYED',             'pe.media_id = m.media_id', NULL),
    ('Ticket',       'Tag',           'TAGGED_WITH',        't.ticket_id = l.ticket_id AND l.tag_id = g.tag_id', 'TicketTagLink'),
    ('Account',      'Ticket',        'SUBMITTED',          'a.email = t.customer_email', NULL),
    ('Account',      'PlayEvent',     'WATCHED',            'a.account_id = pe.account_id', NULL),
    ('User',         'Account',       'IS_ACCOUNT',         'u.id = a.email OR u.id = toString(a.account_id)', NULL);
