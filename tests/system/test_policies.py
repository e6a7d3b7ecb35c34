"""Who may do what: the policies under docs/policies, read as they are, and tried against a real Postgres."""

import json
import re

import psycopg
import pytest

import generate
from harness import ROOT

POLICIES = ROOT / "docs" / "policies"
TOPIC, DLQ = "feed.interactions.v1", "feed.interactions.v1.dlq"
# What no policy of ours may allow, whatever else changes.
NEVER = re.compile(r":(Delete|Create|Alter(?!Group$)|.*Acl|\*|.*\*)", re.IGNORECASE)


def statements(name):
    policy = json.loads((POLICIES / f"{name}.json").read_text())
    assert policy["Version"] == "2012-10-17"
    return policy["Statement"]


def listed(value):
    return value if isinstance(value, list) else [value]


def allowed(name):
    """resource without its ARN's beginning → actions, of the allowing statements"""
    found = {}
    for statement in statements(name):
        assert statement["Effect"] == "Allow", statement
        for resource in listed(statement["Resource"]):
            short = re.sub(r"^arn:aws:(kafka:\$\{REGION\}:\$\{ACCOUNT\}|s3::):", "", resource)
            found.setdefault(short, set()).update(action.partition(":")[2] for action in listed(statement["Action"]))
    return found


def topic(name):
    return f"topic/${{CLUSTER}}/*/{name}"


CLUSTER = "cluster/${CLUSTER}/*"


def test_producers_may_write_this_topic_and_nothing_else():
    assert allowed("producer") == {
        CLUSTER: {"Connect", "WriteDataIdempotently"},
        topic(TOPIC): {"DescribeTopic", "WriteData"},
    }


def test_the_worker_may_do_exactly_what_it_does():
    assert allowed("worker") == {
        CLUSTER: {"Connect", "WriteDataIdempotently"},
        # The configuration says how long the topic keeps a record: lag is held to it.
        topic(TOPIC): {"DescribeTopic", "DescribeTopicDynamicConfiguration", "ReadData"},
        # `feed-worker audit` in a pod reads dead letters, which are copies of what may be read anyway.
        topic(DLQ): {"DescribeTopic", "WriteData", "ReadData"},
        "group/${CLUSTER}/*/feed-worker": {"DescribeGroup", "AlterGroup"},
        "video-window-interactions/exports/*": {"PutObject", "GetObject"},
        "video-window-interactions": {"ListBucket"},
    }


def test_readers_of_the_exports_may_read_them_and_nothing_else():
    assert allowed("reader") == {
        "video-window-interactions/exports/*": {"GetObject"},
        "video-window-interactions": {"ListBucket"},
    }
    assert "](policies/reader.json)" in (ROOT / "docs" / "exports.md").read_text()


@pytest.mark.parametrize("name", ["producer", "worker", "reader"])
def test_nothing_may_be_deleted_created_or_altered(name):
    actions = {action for statement in statements(name) for action in listed(statement["Action"])}
    assert [action for action in sorted(actions) if NEVER.search(action)] == []


def test_an_object_is_written_only_under_a_condition_and_listed_only_under_the_prefix():
    # For a single object there is no prefix, and without the right to list S3 calls one that is missing forbidden (403).
    for name, condition in (("worker", "StringLikeIfExists"), ("reader", "StringLike")):
        (listing,) = (one for one in statements(name) if "s3:ListBucket" in listed(one["Action"]))
        assert listing["Condition"] == {condition: {"s3:prefix": "exports/*"}}, name
    by_sid = {statement["Sid"]: statement for statement in statements("worker")}
    assert by_sid["WriteWhatIsNotThereYet"]["Condition"] == {"Null": {"s3:if-none-match": "false"}}
    putting = [one for one in statements("worker") if "s3:PutObject" in listed(one["Action"])]
    assert len(putting) == 1, "a second way to write would be one without the condition"


def test_the_eraser_takes_objects_out_of_the_exports_and_no_others():
    keeping = {"GetObject", "PutObject", "PutObjectTagging"}
    versions = {"GetObjectVersion", "GetObjectTagging", "DeleteObject", "DeleteObjectVersion"}
    assert allowed("eraser") == {
        "video-window-interactions/exports/*": keeping | versions,
        # What was taken out is evidence: it stays.
        "video-window-interactions/set-aside/*": keeping,
        "video-window-interactions": {"ListBucket", "ListBucketVersions"},
    }
    denied = [one for one in statements("bucket") if "ArnNotLike" in one.get("Condition", {})]
    assert len(denied) == 2
    for statement in denied:
        assert statement["Condition"]["ArnNotLike"] == {"aws:PrincipalArn": "arn:aws:iam::${ACCOUNT}:role/feed-eraser"}
        short = {action.partition(":")[2] for action in listed(statement["Action"])}
        assert short <= allowed("eraser")["video-window-interactions/exports/*"], "of no use: the bucket lets it, and no policy does"


def test_the_bucket_denies_what_a_wrong_identity_policy_would_allow():
    by_sid = {statement["Sid"]: statement for statement in statements("bucket")}
    assert {statement["Effect"] for statement in by_sid.values()} == {"Deny"}
    assert by_sid["TlsOnly"]["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}
    assert len(by_sid["TlsOnly"]["Resource"]) == 2, "the bucket and its objects"
    assert by_sid["NobodyOverwritesAnExport"]["Condition"]["Null"] == {"s3:if-none-match": "true"}
    assert set(by_sid["NobodyDeletesAnExport"]["Action"]) == {"s3:DeleteObject", "s3:DeleteObjectVersion"}


def test_the_names_are_those_of_the_contract_and_the_configuration():
    contract = (ROOT / "topics.yaml").read_text()
    assert re.findall(r"^  - name: (\S+)$", contract, re.MULTILINE) == [TOPIC, DLQ]
    reference = (ROOT / "docs" / "configuration.md").read_text()
    for key, value in [
        ("kafka.topic", TOPIC),
        ("kafka.dlq_topic", DLQ),
        ("kafka.group_id", "feed-worker"),
        ("s3.bucket", "video-window-interactions"),
        ("s3.prefix", "exports"),
    ]:
        assert f"| `{key}` | `{value}` |" in reference, key


# ---- Postgres ------------------------------------------------------------------------------------------------------

ROLES = ["owner", "migrator", "maintainer", "worker", "operator", "reader"]


@pytest.fixture
def roles(case):
    """The roles as the files make them, under names of this case's own: roles are the server's, not a database's."""
    mine = {f"feed_{role}": f"{case.database}_{role}" for role in ROLES}

    def script(name):
        return re.sub(r"\bfeed_(?:%s)\b" % "|".join(ROLES), lambda m: mine[m[0]], (POLICIES / name).read_text())

    owner_url = case.database_url

    def url(role):
        return owner_url.replace("//postgres@", f"//{mine['feed_' + role]}@")

    def run(role, name):
        with psycopg.connect(url(role) if role else owner_url, autocommit=True) as connection:
            connection.execute(script(name))

    run(None, "postgres-roles.sql")
    case.database_url = url("migrator")
    assert case.run("migrate").returncode == 0
    run("migrator", "postgres-grants.sql")
    yield url
    case.close()
    with psycopg.connect(owner_url, autocommit=True) as connection:
        for role in mine.values():
            connection.execute(f'DROP OWNED BY "{role}" CASCADE')
        for role in reversed(mine.values()):
            connection.execute(f'DROP ROLE "{role}"')


def refused(url, statement):
    with psycopg.connect(url, autocommit=True) as connection:
        try:
            connection.execute(statement)
        except psycopg.errors.InsufficientPrivilege:
            return True
    return False


TABLES = ["user_interactions", "export_files", "topic_ledger", "partition_ledger", "ingest_gaps", "operator_actions"]
CHANGES = [
    "DELETE FROM {}",
    "TRUNCATE {}",
    "DROP TABLE {}",
    "ALTER TABLE {} ADD COLUMN x int",
    "CREATE INDEX ON {} ((1))",
]


def test_each_role_may_do_its_own_work_and_no_more(case, roles):
    generator = generate.Generator(41)
    case.database_url = roles("worker")
    worker = case.start_without_migration()
    case.wait_ready(worker)
    case.produce([generator.valid() for _ in range(200)])
    case.wait_drained()
    case.wait_exported()
    assert worker.stop() == 0, case.why()
    case.database_url = roles("maintainer")
    maintained = case.run("maintain")
    assert maintained.returncode == 0, maintained.stderr
    case.database_url = roles("reader")
    assert case.rows() == 200

    changes = [change.format(table) for change in CHANGES for table in TABLES]
    more = ["CREATE TABLE x (y int)", "DROP TABLE user_interactions_default", "DELETE FROM _sqlx_migrations"]
    for role in ("worker", "operator", "reader"):
        open_to = [change for change in changes + more if not refused(roles(role), change)]
        assert open_to == [], role
    for statement in [
        "UPDATE user_interactions SET position = 1",
        "UPDATE export_files SET rows = 1",
        "INSERT INTO ingest_gaps (topic, partition, from_offset, to_offset, day, reason) VALUES ('t', 0, 0, 1, now(), 'x')",
        "INSERT INTO operator_actions (command, reason, detail) VALUES ('x', 'x', '{}')",
        "SELECT * FROM operator_actions",
    ]:
        assert refused(roles("worker"), statement), statement
    for table in TABLES:
        assert refused(roles("reader"), f"INSERT INTO {table} DEFAULT VALUES"), table
    assert case.rows() == 200
