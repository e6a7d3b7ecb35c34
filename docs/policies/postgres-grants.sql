-- After each `feed-worker migrate`, by feed_migrator. A day's table needs no right of its own: it is reached through its parent.

-- Rows and files are added, never changed or deleted; the ledger moves on.
GRANT SELECT, INSERT ON user_interactions, export_files TO feed_worker;
GRANT SELECT, INSERT, UPDATE ON topic_ledger, partition_ledger TO feed_worker;
GRANT SELECT ON ingest_gaps, _sqlx_migrations TO feed_worker;

-- Decisions are written down. `ledger reconcile` loads rows back that a backup lacks.
GRANT SELECT, INSERT ON user_interactions TO feed_operator;
GRANT SELECT ON _sqlx_migrations TO feed_operator;
GRANT SELECT, INSERT, UPDATE ON topic_ledger, partition_ledger TO feed_operator;
GRANT SELECT, INSERT ON export_files, ingest_gaps, operator_actions TO feed_operator;

GRANT SELECT ON user_interactions, topic_ledger, partition_ledger, export_files, ingest_gaps, operator_actions TO feed_reader;
