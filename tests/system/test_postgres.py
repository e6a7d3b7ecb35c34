"""What Postgres says no to, what only the tables' owner may do, and a registry that is away."""

import pytest

import generate
from test_dlq import dead_letters

STRAY = (
    "INSERT INTO user_interactions SELECT kafka_partition, kafka_offset + 1000000, recorded_at - interval '200 days', occurred_at,"
    " ingested_at, user_id, video_id, interaction_type, interaction_weight FROM user_interactions WHERE kafka_offset < 5"
)


def execute(case, *statements):
    with case.connect() as connection:
        for statement in statements:
            connection.execute(statement)


def migrated(case):
    for command in ("migrate", "maintain"):
        done = case.run(command)
        assert done.returncode == 0, done.stderr


def test_refused_row_is_dead_lettered_and_the_rest_is_written(case):
    """A constraint that the worker knows nothing of: the rows are found by bisection, nothing else waits."""
    generator = generate.Generator(31)
    migrated(case)
    execute(case, "ALTER TABLE user_interactions ADD CONSTRAINT no_skips CHECK (kafka_offset % 97 <> 5)")
    worker = case.start_ready()
    case.produce([generator.valid() for _ in range(3000)])
    case.wait_drained()
    case.wait_exported()
    assert worker.stop() == 0, case.why()
    letters = dead_letters(case)
    headers = [dict(letter.headers()) for letter in letters]
    assert {found["feed_worker.reject.reason"] for found in headers} == {b"refused_by_postgres"}
    assert all(b"23514" in found["__connect.errors.exception.message"] for found in headers)
    assert {int(found["__connect.errors.offset"]) % 97 for found in headers} == {5}
    assert case.rows() + len(letters) == 3000
    assert case.query("SELECT sum(rejects_total)::bigint FROM partition_ledger")[0] == (len(letters),)


def test_row_that_the_ledger_does_not_know_stops_its_partition(case):
    generator = generate.Generator(32)
    worker = case.start_ready()
    case.produce([generator.valid() for _ in range(10)], partition=2)
    case.wait_drained()
    execute(
        case,
        "INSERT INTO user_interactions SELECT kafka_partition, 12, recorded_at, occurred_at, ingested_at, user_id, video_id,"
        " interaction_type, interaction_weight FROM user_interactions WHERE kafka_partition = 2 AND kafka_offset = 3",
        # The same key as the record's own row will have: the day is part of it, the time too.
        "ALTER TABLE user_interactions_default ADD CONSTRAINT none CHECK (true)",
    )
    execute(case, "CREATE UNIQUE INDEX once ON " + today(case) + " (kafka_partition, kafka_offset)")
    case.produce([generator.valid() for _ in range(10)], partition=2)
    case.produce([generator.valid() for _ in range(10)], partition=3)
    case.wait(lambda: case.frontiers()[3][0] == 10, "the other partition drained")

    def stopped():
        return case.query("SELECT stopped FROM partition_ledger WHERE partition = 2")[0][0]

    case.wait(lambda: stopped() == "disagrees", "the partition to stop")
    assert case.frontiers()[2][0] == 10
    assert worker.stop() == 0, case.why()


@pytest.mark.parametrize("migrates", [True, False], ids=["migrates", "does not migrate"])
def test_worker_that_starts_while_postgres_is_read_only_waits(case, migrates):
    """A fail-over says nothing about the tables: no exit code of a refused ledger."""
    if not migrates:
        migrated(case)
    execute(case, f'ALTER DATABASE "{case.database}" SET default_transaction_read_only = on')
    worker = case.start() if migrates else case.start_without_migration()
    waits = "cannot be written to" if migrates else "cannot execute"
    case.wait(lambda: waits in worker.log(), "the worker to wait", 60)
    assert worker.alive
    execute(case, "SET default_transaction_read_only = off", f'ALTER DATABASE "{case.database}" RESET default_transaction_read_only')
    case.wait_ready(worker, 60)
    generator = generate.Generator(36)
    case.produce([generator.valid() for _ in range(100)])
    case.wait_drained()
    case.wait_exported()
    assert worker.stop() == 0, case.why()
    case.assert_clean()


def today(case):
    """The table of the rows' day."""
    return case.query("SELECT DISTINCT tableoid::regclass::text FROM user_interactions")[0][0]


def test_maintain_makes_days_moves_strays_and_drops_only_what_is_closed(case):
    generator = generate.Generator(33)
    worker = case.start_ready()
    case.produce([generator.valid() for _ in range(500)])
    case.wait_drained()
    assert worker.stop() == 0, case.why()
    # Older than retention and before the ledger's first day, which counts as closed.
    execute(case, STRAY)
    assert case.query("SELECT count(*) > 0 FROM user_interactions_default")[0] == (True,)
    migrated(case)
    migrated(case)
    assert case.query("SELECT count(*) FROM user_interactions_default")[0] == (0,)
    assert case.rows() == 500
    # A day that is not closed stays, however old.
    execute(case, "UPDATE topic_ledger SET success_day = '2000-01-01'", STRAY)
    migrated(case)
    assert case.query("SELECT count(*) FROM user_interactions_default")[0] == (0,)
    assert case.rows() > 500


def test_worker_needs_no_right_to_change_tables(case):
    """The worker's own role may read and write rows, nothing else."""
    generator = generate.Generator(34)
    migrated(case)
    role = case.database.replace("-", "_")[:50] + "_worker"
    execute(
        case,
        f'CREATE ROLE "{role}" LOGIN',
        f'GRANT SELECT, INSERT ON user_interactions, export_files TO "{role}"',
        f'GRANT SELECT, INSERT, UPDATE ON topic_ledger, partition_ledger TO "{role}"',
        f'GRANT SELECT ON ingest_gaps, _sqlx_migrations TO "{role}"',
    )
    owner = case.database_url
    case.database_url = owner.replace("//postgres@", f"//{role}@")
    assert case.database_url != owner
    worker = case.start_without_migration()
    case.wait_ready(worker)
    case.database_url = owner
    case.produce([generator.valid() for _ in range(300)])
    case.wait_drained()
    case.wait_exported()
    assert worker.stop() == 0, case.why()
    case.assert_clean()
    execute(case, f'DROP OWNED BY "{role}"', f'DROP ROLE "{role}"')


@pytest.mark.parametrize("known", [False, True], ids=["schema not known yet", "schema known"])
def test_registry_away_holds_only_what_needs_it(stack, case, known):
    generator = generate.Generator(35, case.schemas())

    def events(avro, count):
        found = (generator.valid() for _ in range(10_000))
        return [event for event in found if (event.value[0] == 0) == avro][:count]

    worker = case.start_ready()
    if known:
        case.produce(events(avro=True, count=200), partition=0)
        case.wait_drained()
    stack.command("stop-registry")
    try:
        case.produce(events(avro=True, count=20), partition=1)
        case.produce(events(avro=False, count=20), partition=4)
        free = [1, 4] if known else [4]
        case.wait(lambda: all(case.frontiers()[number][0] == 20 for number in free), "what does not need it drained")
        if not known:
            assert case.frontiers()[1][0] == 0
        assert not dead_letters(case)
    finally:
        stack.command("start-registry")
    case.wait_drained(60)
    case.wait_exported()
    assert worker.stop() == 0, case.why()
    case.assert_clean()
