"""`migrate --grants`, as the chart's migration runs it, and what the roles can then do as the chart's jobs run them."""

import re
import subprocess

import psycopg
import pytest
import yaml

import generate
from harness import ROOT

POLICIES = ROOT / "docs" / "policies"
HELM = ROOT / "target" / "tools" / "chart" / "helm"
ROLES = [f"feed_{role}" for role in ("owner", "migrator", "maintainer", "worker", "operator", "reader")]


def as_role(url, role):
    return url.replace("//postgres@", f"//{role}@")


def drop_roles(url):
    """They are the server's: another test may have left its own behind."""
    with psycopg.connect(url, autocommit=True) as connection:
        for role in reversed(ROLES):
            if connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (role,)).fetchall():
                connection.execute(f"DROP OWNED BY {role} CASCADE")
                connection.execute(f"DROP ROLE {role}")


@pytest.fixture
def roles(case):
    """The roles under the names that `--grants` knows, in this case's database."""
    url = case.database_url
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute((POLICIES / "postgres-roles.sql").read_text())
    yield lambda role: as_role(url, role)
    case.close()
    drop_roles(url)


def granted(url):
    """(role, table, right) of everybody but the owner."""
    statement = """SELECT a.grantee::regrole::text, c.relname, a.privilege_type FROM pg_class c, aclexplode(c.relacl) a
                   WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p') AND a.grantee <> c.relowner"""
    with psycopg.connect(url) as connection:
        return set(connection.execute(statement).fetchall())


def promised():
    found = set()
    text = (POLICIES / "postgres-grants.sql").read_text()
    for rights, tables, role in re.findall(r"^GRANT ([\w, ]+) ON ([\w, ]+) TO (\w+);$", text, re.M):
        found |= {(role, table, right) for table in tables.split(", ") for right in rights.split(", ")}
    return found


def test_migration_gives_each_role_its_rights_and_no_more(case, roles):
    url = case.database_url
    wanted = promised()
    assert len(wanted) > 20
    case.database_url = roles("feed_migrator")
    done = case.run("migrate")
    assert done.returncode == 0, done.stderr
    assert granted(url) == set(), "without the flag nobody gets anything"
    for _ in range(2):  # as with every upgrade
        done = case.run("migrate", "--grants")
        assert done.returncode == 0, done.stderr
        assert granted(url) == wanted
    with psycopg.connect(url) as connection:
        owners = connection.execute("SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname = 'public'").fetchall()
    assert owners == [("feed_owner",)]
    # Only who owns the tables can give.
    case.database_url = roles("feed_reader")
    done = case.run("migrate", "--grants")
    assert done.returncode == 66 and "permission denied" in done.stderr, done.stderr
    assert granted(url) == wanted


def test_migration_without_the_roles_says_which_are_missing(case):
    drop_roles(case.database_url)
    done = case.run("migrate", "--grants")
    assert done.returncode == 66, done.stderr
    assert "docs/policies/postgres-roles.sql" in done.stderr and 'role "feed_worker" does not exist' in done.stderr
    # The tables are there, and the rights can be given later.
    assert case.rows() == 0


@pytest.fixture
def jobs(folder):
    """name → arguments, as the chart renders the scheduled jobs."""
    chart = ROOT / "helm" / "feed-worker"
    command = [HELM, "template", "feed", chart, "--values", chart / "ci" / "minimal-values.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = {}
    for one in yaml.safe_load_all(done.stdout):
        if one and one["kind"] == "CronJob":
            (container,) = one["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
            found[container["name"]] = container["args"]
    return found


def test_a_reader_can_audit_yesterday_as_the_chart_does(crossing, jobs):
    """The day that the workers closed is yesterday by the clock that they have."""
    case, url = crossing.busy, crossing.busy.database_url
    assert jobs["audit"] == ["audit", "--day", "yesterday"]
    text = (POLICIES / "postgres-grants.sql").read_text()
    reader = f"{case.database}_reader"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {reader} LOGIN")
        connection.execute(f"GRANT USAGE ON SCHEMA public TO {reader}")
        for grant in re.findall(r"^GRANT .* TO feed_reader;$", text, re.M):
            connection.execute(grant.replace("feed_reader", reader))
    try:
        own = as_role(url, reader)
        done = case.run(*jobs["audit"], _DATABASE_URL=own)
        assert done.returncode == 0, done.stdout + done.stderr
        assert crossing.day in done.stdout, done.stdout
        case.objects.delete(f"{case.prefix}/{crossing.day}/_SUCCESS")
        done = case.run(*jobs["audit"], _DATABASE_URL=own)
        assert done.returncode == 2 and "_SUCCESS" in done.stdout, done.stdout + done.stderr
    finally:
        assert case.run("exports", "rebuild", "--day", crossing.day).returncode == 0
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(f"DROP OWNED BY {reader}")
            connection.execute(f"DROP ROLE {reader}")


def test_the_other_jobs_run_under_their_roles(case, roles, jobs):
    case.database_url = roles("feed_migrator")
    assert case.run("migrate", "--grants").returncode == 0
    case.database_url = roles("feed_worker")
    worker = case.start_without_migration()
    case.wait_ready(worker)
    generator = generate.Generator(42, bad_share=0)
    case.produce([generator.event() for _ in range(100)])
    case.wait_drained()
    assert worker.stop() == 0, case.why()
    case.database_url = roles("feed_maintainer")
    assert jobs["maintain"] == ["maintain"]
    done = case.run(*jobs["maintain"])
    assert done.returncode == 0, done.stderr
    case.database_url = roles("feed_operator")
    assert case.run("ledger", "show").returncode == 0
    done = case.run("ledger", "reconcile", "--dry-run")
    # Told to wait: it got as far as looking for signs of workers.
    assert done.returncode == 66 and "try again in" in done.stderr, done.stdout + done.stderr
