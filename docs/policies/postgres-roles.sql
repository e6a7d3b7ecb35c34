-- Once for a database, by an administrator, before the first `feed-worker migrate`. Passwords are set apart from this.

-- Owns the tables; nobody logs in as it.
CREATE ROLE feed_owner NOLOGIN;
-- Runs `feed-worker migrate`, for the length of a deployment.
CREATE ROLE feed_migrator LOGIN IN ROLE feed_owner;
-- Runs `feed-worker maintain`: only an owner may add and drop a table's partitions.
CREATE ROLE feed_maintainer LOGIN IN ROLE feed_owner;
-- Runs `feed-worker run`, and nothing else does: a worker ends stopped sessions of its own role.
CREATE ROLE feed_worker LOGIN;
-- Runs `feed-worker ledger` and `rejects`, when an operator decides.
CREATE ROLE feed_operator LOGIN;
-- For everybody who only looks.
CREATE ROLE feed_reader LOGIN;

-- What they create belongs to the owner.
ALTER ROLE feed_migrator SET role = 'feed_owner';
ALTER ROLE feed_maintainer SET role = 'feed_owner';

REVOKE CREATE ON SCHEMA public FROM PUBLIC;
GRANT USAGE, CREATE ON SCHEMA public TO feed_owner;
GRANT USAGE ON SCHEMA public TO feed_worker, feed_operator, feed_reader;
