"""docs/deploy.md: what it says to run is run as it stands; what needs AWS is held to all that can be known without it."""

import contextlib
import hashlib
import json
import math
import os
import re
import shlex
import signal
import subprocess
import time
import urllib.request
from dataclasses import dataclass

import botocore.session
import botocore.validate
import psycopg
import pytest
import yaml
from confluent_kafka.admin import AdminClient

from checker.environment import read_env_file
from harness import ROOT, WORKER, wait_until
from test_alerts import exists

PAGE = ROOT / "docs" / "deploy.md"
TEXT = PAGE.read_text()
LINES = TEXT.splitlines()
MARK = re.compile(r"<!-- (?:runs locally: (?P<name>[a-z ]+)|needs AWS) -->")
TOOLS = ROOT / "target" / "tools" / "chart"
# Of the folder docs/policies, what the guide fills in.
POLICIES = ("worker", "producer", "reader", "eraser", "bucket", "bucket-lifecycle")
DEPLOY, REHEARSAL = ROOT / "target" / "deploy", ROOT / "target" / "rehearsal"
# Long enough for a machine with ten times the work that it can do; the day's block waits for midnight.
BLOCK_S = 420


@dataclass(frozen=True)
class Block:
    line: int
    mark: str
    language: str
    body: str

    @property
    def name(self):
        """Of one that runs locally."""
        return MARK.fullmatch(self.mark)["name"]


def blocks(lines):
    found, at = [], 0
    while at < len(lines):
        if lines[at].startswith("```"):
            end = lines.index("```", at + 1)
            body = "".join(f"{line}\n" for line in lines[at + 1 : end])
            found.append(Block(at + 1, lines[at - 1] if at else "", lines[at][3:], body))
            at = end
        at += 1
    return found


BLOCKS = blocks(LINES)
LOCAL = [block for block in BLOCKS if MARK.fullmatch(block.mark) and block.name]
AWS = [block for block in BLOCKS if MARK.fullmatch(block.mark) and not block.name]


def unmarked(found):
    return [f"line {block.line}: {block.language}" for block in found if not MARK.fullmatch(block.mark)]


def test_every_block_is_marked():
    assert unmarked(BLOCKS) == []
    assert {block.language for block in BLOCKS} == {"sh"}
    # Nothing that looks like a block and is not seen as one.
    assert not [line for line in LINES if re.match(r"\s+```|~~~| {4}\S", line) and not inside(line)]
    assert len(LOCAL) + len(AWS) == len(BLOCKS) and len(LOCAL) >= 10 and len(AWS) >= 10


def inside(line):
    return any(f"{line}\n" in block.body for block in BLOCKS)


def test_a_block_without_a_mark_is_noticed():
    assert unmarked(blocks(["text", "```sh", "rm -rf /", "```"])) == ["line 2: sh"]
    assert unmarked(blocks(["<!-- runs somewhere -->", "```sh", "```"])) == ["line 2: sh"]
    assert unmarked(blocks(["<!-- needs AWS -->", "```sh", "```"])) == []


# ---- what runs locally ---------------------------------------------------------------------------------------------


class Shell:
    """One bash for all blocks: what one sets, the next has."""

    def __init__(self, folder):
        self.folder = folder
        self.log_path = folder / "shell.log"
        own = {name: value for name, value in os.environ.items() if not name.startswith(("FEED_", "AWS_", "STACK_", "PG"))}
        own["PATH"] = f"{TOOLS}:{own['PATH']}"
        own.pop("DATABASE_URL", None)
        with open(self.log_path, "wb") as log:
            self.process = subprocess.Popen(
                ["bash", "--noprofile", "--norc"],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                cwd=ROOT,
                env=own,
                start_new_session=True,
            )
        self._send("set -euo pipefail")

    def _send(self, line):
        self.process.stdin.write(f"{line}\n".encode())
        self.process.stdin.flush()

    def _until_done(self, what, timeout_s):
        done = self.folder / "done"
        done.unlink(missing_ok=True)
        self._send(f"touch '{done}'")

        def is_done():
            if done.exists():
                return True
            assert self.process.poll() is None, f"{what} ended with {self.process.returncode}:\n{self.told()}"
            return False

        wait_until(is_done, lambda: f"{what}:\n{self.told()}", timeout_s, 0.1)

    def run(self, block):
        path = self.folder / "block.sh"
        path.write_text(block.body)
        before = self.log_path.stat().st_size
        self._send(f". '{path}' </dev/null")
        self._until_done(f"block {block.name!r} (line {block.line})", BLOCK_S)
        return self.log_path.read_bytes()[before:].decode(errors="replace")

    def value(self, name):
        path = self.folder / "value"
        self._send(f"printf '%s' \"${{{name}}}\" >'{path}'")
        self._until_done(f"${name}", 60)
        return path.read_text()

    def told(self):
        logs = [self.log_path, *sorted(REHEARSAL.glob("*.log"))]
        return "\n".join(f"--- {log.name}\n" + "\n".join(log.read_text(errors="replace").splitlines()[-25:]) for log in logs)

    def close(self):
        """Workers are of its group, the stack's parts are not."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def shell(folder):
    found = Shell(folder)
    yield found
    found.close()
    subprocess.run([ROOT / "dev" / "stack", "down", "--dir", REHEARSAL], capture_output=True, check=False)


CHECKS = {}


def block(name):
    def register(check):
        CHECKS[name] = check
        return check

    return register


def query(shell, statement):
    with psycopg.connect(shell.value("DATABASE_URL"), connect_timeout=10) as connection:
        return connection.execute(statement).fetchall()


def judged(shell, *options):
    """The independent checker's figures; nothing may be wrong."""
    out = shell.folder / "check.json"
    command = [ROOT / "dev" / "stack", "run", "--dir", REHEARSAL, "--", ROOT / "dev" / "check", "--env", REHEARSAL / "env"]
    done = subprocess.run([*command, "--json", out, *options], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr + shell.told()
    return json.loads(out.read_text())["summary"]


@block("names")
def names(shell, said):
    assert shell.value("IMAGE") == "123456789012.dkr.ecr.eu-central-1.amazonaws.com/feed-worker"


@block("policies")
def policies(shell, said):
    for name in POLICIES:
        text = (ROOT / "docs" / "policies" / f"{name}.json").read_text()
        for known, value in (("${REGION}", "AWS_REGION"), ("${ACCOUNT}", "ACCOUNT"), ("${CLUSTER}", "CLUSTER")):
            text = text.replace(known, shell.value(value))
        made = (DEPLOY / f"{name}.json").read_text()
        assert json.loads(made) == json.loads(text) and "${" not in made, name
    rules = json.loads((DEPLOY / "bucket-lifecycle.json").read_text())
    shape = botocore.session.get_session().get_service_model("s3").operation_model("PutBucketLifecycleConfiguration").input_shape
    report = botocore.validate.ParamValidator().validate({"Bucket": "b", "LifecycleConfiguration": rules}, shape)
    assert not report.has_errors(), report.generate_report()
    assert not any("Days" in rule.get("Expiration", {}) or "Transitions" in rule for rule in rules["Rules"]), "exports stay"


@block("values")
def values(shell, said):
    found = yaml.safe_load((DEPLOY / "values.yaml").read_text())
    assert found["config"]["s3"]["bucket"] == shell.value("BUCKET")


@block("render")
def render(shell, said):
    text = (DEPLOY / "release.yaml").read_text()
    objects = {(one["kind"], one["metadata"]["name"]): one for one in yaml.safe_load_all(text) if one}
    expected = {"Deployment", "ConfigMap", "ServiceAccount", "NetworkPolicy", "PodDisruptionBudget", "ScaledObject", "CronJob", "Job"}
    assert expected <= {kind for kind, _ in objects}
    schemas = [TOOLS / "schemas" / "{{ .NormalizedKubernetesVersion }}" / "{{ .ResourceKind }}{{ .KindSuffix }}.json"]
    schemas.append(TOOLS / "schemas" / "crds" / "{{ .ResourceKind }}_{{ .ResourceAPIVersion }}.json")
    command = [TOOLS / "kubeconform", "-strict", "-kubernetes-version", "1.33.0"]
    command += [part for schema in schemas for part in ("-schema-location", schema)]
    ended = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    # The names that other blocks use.
    jobs = [("CronJob", f"feed-worker-{name}") for name in ("maintain", "audit", "operator")]
    for named in (("Deployment", "feed-worker"), *jobs):
        assert named in objects
    # The Secrets that pods ask for are those that the guide makes.
    (made,) = re.findall(r"^for role in ([a-z ]+); do\n    url=", "".join(one.body for one in AWS), re.M)
    asked = {name for name in re.findall(r"name: (feed-[a-z]+-database)$", text, re.M)}
    assert asked == {f"feed-{role}-database" for role in made.split()}
    subject = re.search(r":sub\": \"(system:\S+)\"", TEXT)[1]
    pod = objects["Deployment", "feed-worker"]["spec"]["template"]["spec"]
    assert subject == f"system:serviceaccount:pipelines:{pod['serviceAccountName']}"
    # Nothing of it comes up blind: Prometheus gets in, and lag is held to the contract's retention.
    (rule,) = objects["NetworkPolicy", "feed-worker"]["spec"]["ingress"]
    assert rule["from"] and [port["port"] for port in rule["ports"]] == [8080]
    contract = yaml.safe_load((ROOT / "topics.yaml").read_text())["topics"][0]
    kafka = yaml.safe_load(objects["ConfigMap", "feed-worker"]["data"]["config.yaml"])["kafka"]
    assert kafka["retention_ms"] == contract["config"]["retention.ms"]
    # The program takes what the workers get, and what the drift job gets beside it.
    config = shell.folder / "config.yaml"
    config.write_text(objects["ConfigMap", "feed-worker"]["data"]["config.yaml"])
    drift = objects["CronJob", "feed-worker-topics-drift"]["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]
    own = {one["name"]: one.get("value", "made-up") for one in drift["env"]} | {"FEED_WORKER_CONFIG": str(config)}
    url = "postgres://feed_worker:x@db.example.com/feed"
    for env, auth in (({"FEED_WORKER_CONFIG": str(config)}, "msk_iam"), (own, "scram")):
        done = subprocess.run([WORKER, "config", "--format", "json"], env=env | {"DATABASE_URL": url}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["values"]["kafka"]["auth"] == auth


@block("stack")
def stack(shell, said):
    assert "stack up in" in said
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", shell.value("day"))


@block("contracts")
def contracts(shell, said):
    env = read_env_file(REHEARSAL / "env")
    admin = AdminClient({"bootstrap.servers": env["FEED_WORKER_KAFKA__BOOTSTRAP_SERVERS"]})
    topics = admin.list_topics(timeout=20).topics
    assert len(topics["feed.interactions.v1"].partitions) == len(topics["feed.interactions.v1.dlq"].partitions) == 6
    url = f"{env['FEED_WORKER_REGISTRY__URL']}/subjects/feed.interactions.v1-value/versions"
    with urllib.request.urlopen(url, timeout=10) as answer:
        assert json.load(answer)


@block("tables")
def tables(shell, said):
    owners = query(shell, "SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname = 'public'")
    assert owners == [("feed_owner",)]
    may = "SELECT has_table_privilege('feed_worker', 'user_interactions', unnest(ARRAY['INSERT', 'DELETE']))"
    assert query(shell, may) == [(True,), (False,)]
    ahead = "SELECT count(*) FROM pg_inherits WHERE inhparent = 'user_interactions'::regclass"
    assert query(shell, ahead)[0][0] > 7


@block("workers")
def workers(shell, said):
    assert query(shell, "SELECT sum(persist_frontier) FROM partition_ledger") == [(20_000,)]
    # One may have done it all before the other was in the group.
    owners = "SELECT count(DISTINCT owner) FROM partition_ledger"
    wait_until(lambda: query(shell, owners) == [(2,)], lambda: f"both to have a share\n{shell.told()}", 120)


@block("first closed day")
def first_closed_day(shell, said):
    day, folder = shell.value("day"), shell.value("folder")
    manifest = json.loads(open(f"{folder}/_manifest.json").read())
    rows = query(shell, f"SELECT count(*) FROM user_interactions WHERE recorded_at < date '{day}' + 1")[0][0]
    assert manifest["day"] == day and manifest["rows"] == rows > 15_000
    summary = judged(shell)
    assert summary["produced"] == 20_000 and summary["exported"] == rows


@block("rebuild")
def rebuild(shell, said):
    assert "feed.interactions.v1+0+" in said and "_SUCCESS" in said, said
    assert os.path.exists(f"{shell.value('folder')}/_SUCCESS")


@block("restore")
def restore(shell, said):
    assert query(shell, "SELECT command, reason FROM operator_actions") == [("ledger reconcile", "drill")]
    summary = judged(shell)
    assert summary["produced"] == 40_000 and summary["exported"] == summary["persisted"]
    shell.first_table = query(shell, "SELECT count(*) FROM user_interactions")
    shell.first_files = hashes(shell.value("folder"))


@block("new topic")
def new_topic(shell, said):
    url = shell.value("DATABASE_URL")
    assert url.endswith("/feed_2")
    summary = judged(shell, "--database-url", url, "--prefix", "exports-2")
    assert summary["produced"] == 1000 and summary["exported"] == summary["persisted"]
    before = read_env_file(REHEARSAL / "env")["DATABASE_URL"]
    with psycopg.connect(before) as connection:
        assert connection.execute("SELECT count(*) FROM user_interactions").fetchall() == shell.first_table
        why = {stopped for (stopped,) in connection.execute("SELECT stopped FROM partition_ledger")}
    # The worker was stopped at the first one; whatever it had not looked at yet is as it was.
    assert why & {"ahead", "recreated"} and why <= {"ahead", "recreated", None}, why
    assert hashes(shell.value("folder")) == shell.first_files


@block("upgrade")
def upgrade(shell, said):
    changed = [line for line in (DEPLOY / "changes").read_text().splitlines() if line.startswith(("<", ">"))]
    what = re.compile(r"[<>]\s+(image: \S+/feed-worker:|app.kubernetes.io/version: \"|value: \")0\.[12]\.0\"?")
    assert len(changed) > 10 and [line for line in changed if not what.fullmatch(line)] == []


@block("end")
def end(shell, said):
    assert not (REHEARSAL / "env").exists()


def hashes(folder):
    return {name: hashlib.sha256(open(f"{folder}/{name}", "rb").read()).hexdigest() for name in sorted(os.listdir(folder))}


def test_what_runs_locally_runs(shell):
    assert [one.name for one in LOCAL] == list(dict.fromkeys(one.name for one in LOCAL)), "names are unique"
    assert {one.name for one in LOCAL} == set(CHECKS), "every block has a check of its own"
    for one in LOCAL:
        began = time.monotonic()
        said = shell.run(one)
        CHECKS[one.name](shell, said)
        print(f"{one.name}: {time.monotonic() - began:.1f} s")


# ---- what needs AWS ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("one", AWS, ids=lambda one: f"line-{one.line}")
def test_blocks_for_aws_are_a_shells(one):
    done = subprocess.run(["bash", "-n"], input=one.body, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_commands_of_the_worker_are_as_the_guide_says():
    bodies = "".join(one.body for one in BLOCKS)
    commands = re.findall(r"^(?:.* exec deploy/feed-worker -- )?feed-worker (.+)$", bodies, re.M)
    commands += re.findall(r"target/rehearsal/as [a-z]+ ([^;\n>|&]+)", bodies)
    commands += re.findall(r"`feed-worker ([a-z][a-z-]*(?: [^`\n]*)?)`", TEXT)
    assert len(commands) > 25
    for command in commands:
        exists(command.split(" #")[0].strip())


def spoken(body):
    """The block as a list of commands' words, for looking at: comments gone, $(…) opened, lines joined."""
    text = re.sub(r"^(\s*)#.*$|\s# .*$", r"\1", body.replace("\\\n", " "), flags=re.M)
    text = text.replace('"$(', "$(").replace(')"', ")")
    found = []
    for line in text.splitlines():
        try:
            lexer = shlex.shlex(line, posix=True, punctuation_chars="();|&")
            lexer.whitespace_split, lexer.commenters = True, ""
            words = list(lexer)
        except ValueError:
            continue  # a line of a here-document
        command = []
        for word in [*words, ";"]:
            if set(word) <= set("();|&"):
                found.append(command)
                command = []
            else:
                command.append(word)
    return [command for command in found if command]


def aws_commands():
    for one in AWS:
        for command in spoken(one.body):
            if "aws" in command:
                words = command[command.index("aws") :]
                yield one, words[: words.index("]")] if "]" in words else words


GLOBAL = {"--query", "--output", "--region"}
# Of the command line itself, not of the service.
OWN = {("ecr", "get-login-password"), ("s3", "ls"), ("s3", "cp")}


@pytest.mark.parametrize(("one", "words"), list(aws_commands()), ids=lambda value: " ".join(value[1:3]) if isinstance(value, list) else "")
def test_commands_of_aws_are_known(one, words):
    """By the same description of the services that the command line is made of."""
    _, service, operation, *rest = words
    flags = [word for word in rest if word.startswith("--")]
    if (service, operation) in OWN:
        return
    session = botocore.session.get_session()
    model = session.get_service_model("s3" if service == "s3api" else service)
    named = {botocore.xform_name(name, "-"): name for name in model.operation_names}
    if operation == "wait":
        waiters = session.get_waiter_model(service)
        (waiter,) = [name for name in waiters.waiter_names if botocore.xform_name(name, "-") == rest[0]]
        operation = botocore.xform_name(waiters.get_waiter(waiter).operation, "-")
    assert operation in named, f"aws {service} {operation}"
    shape = model.operation_model(named[operation]).input_shape
    members = {f"--{botocore.xform_name(name, '-')}": name for name in shape.members}
    unknown = [flag for flag in flags if flag not in members and flag not in GLOBAL]
    assert unknown == [], f"aws {service} {operation}: {unknown}, of {sorted(members)}"
    missing = [name for name in shape.required_members if name not in {members.get(flag) for flag in flags}]
    assert missing == [], f"aws {service} {operation} needs {missing}"


def test_the_commands_of_aws_were_found():
    found = [" ".join(words[1:3]) for _, words in aws_commands()]
    assert len(found) == len(re.findall(r"\baws [a-z0-9]+ [a-z]", "".join(one.body for one in AWS)))
    assert {"kafka create-cluster", "rds create-db-instance", "s3api put-bucket-policy", "iam create-role"} <= set(found)


def test_files_that_are_handed_to_aws_were_made_before():
    made = set()
    for one in BLOCKS:
        used = re.findall(r"(?:fileb?://|=|-f |--values )(target/deploy/[\w.-]+|docs/[\w./-]+)", one.body)
        made |= set(re.findall(r">(target/deploy/[\w.-]+)", one.body)) | set(re.findall(r"-fsSo (target/deploy/[\w.-]+)", one.body))
        if one.mark.startswith("<!-- runs locally: policies"):
            made |= {f"target/deploy/{name}.json" for name in POLICIES}
        for path in used:
            assert path in made or (ROOT / path).exists() and not path.startswith("target"), f"line {one.line}: {path}"


def test_variables_are_set_before_they_are_used():
    known = {"PWD", "HOME"}
    for one in BLOCKS:
        for line in one.body.splitlines():
            used = set(re.findall(r"(?<!\\)\$\{?([A-Z][A-Z_0-9]+)(?!:-)\b", line))
            optional = set(re.findall(r"\$\{([A-Z_0-9]+):-", line))
            if one.name:  # the rehearsal has the stack's own
                used = {name for name in used if not name.startswith(("STACK_", "FEED_WORKER_", "DATABASE_URL"))}
            known |= set(re.findall(r"(?:^|\s|;)([A-Z][A-Z_0-9]+)=", line))
            assert used - optional <= known, f"line {one.line}: {sorted(used - optional - known)}"


def test_policies_inside_the_guide_are_json():
    found = [body for one in AWS for body in re.findall(r"<<EOF\n(\{.*?\n\})\nEOF", one.body, re.S)]
    policies = [json.loads(re.sub(r"\$\{?[A-Z]+(#https://)?\}?", "x", text)) for text in found]
    (eraser,), (worker,) = (policy["Statement"] for policy in policies)
    assert worker["Action"] == "sts:AssumeRoleWithWebIdentity" and len(worker["Condition"]["StringEquals"]) == 2
    assert eraser["Action"] == "sts:AssumeRole" and eraser["Condition"] == {"Bool": {"aws:MultiFactorAuthPresent": "true"}}


def test_the_roles_that_policies_name_are_made():
    named = set(re.findall(r":role/([\w-]+)", "".join(path.read_text() for path in (ROOT / "docs" / "policies").glob("*.json"))))
    made = {words[words.index("--role-name") + 1] for _, words in aws_commands() if words[1:3] == ["iam", "create-role"]}
    assert "feed-eraser" in named and named <= made


def test_commands_of_helm_are_known():
    commands = [command for one in BLOCKS for command in spoken(one.body) if "helm" in command[:1]]
    assert {command[1] for command in commands} == {"template", "install", "upgrade", "history", "rollback"}
    for command in commands:
        done = subprocess.run([TOOLS / "helm", command[1], "--help"], capture_output=True, text=True, check=False)
        unknown = [word for word in command if word.startswith("--") and not re.search(rf"{word}\b", done.stdout)]
        assert done.returncode == 0 and unknown == [], command


def test_links_lead_somewhere():
    for target, anchor in re.findall(r"\]\(([\w./-]*)(#[\w-]+)?\)", TEXT):
        path = (PAGE.parent / target).resolve() if target else PAGE
        assert path.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", path.read_text(), re.M)
            assert anchor[1:] in {re.sub(r"[^\w -]", "", one.replace("`", "")).lower().replace(" ", "-") for one in headings}, anchor


# ---- how large -----------------------------------------------------------------------------------------------------


def figure(pattern):
    return float(re.search(pattern, TEXT)[1].replace(",", ""))


def priced(what):
    (row,) = re.findall(rf"^\| {re.escape(what)}[^|]* \| ([\d., ]+) \|", TEXT, re.M)
    return [float(one) for one in row.split(", ")]


def sized(rate):
    """The sentences under the table, as arithmetic."""
    worker, postgres = figure(r"worker, both sinks \| ([\d.]+) µs"), figure(r"Postgres \| ([\d.]+) µs")
    row, record = figure(r"two indexes \| (\d+) bytes"), figure(r"one replica \| (\d+) bytes")
    parquet = figure(r"Parquet on S3 \| ([\d.]+) bytes")
    floor = figure(r"max\(workers × ([\d.]+), ")
    busy, wanted = 3 * rate * worker / 1e6, 3 * rate * postgres / 1e6 / 0.5
    workers = max(2, math.ceil(busy / 0.35))
    classes = dict(zip(("large", "xlarge", "2xlarge"), priced("RDS Postgres db.r8g.large"), strict=True))
    name = next(name for name, cpus in (("large", 2), ("xlarge", 4), ("2xlarge", 8)) if cpus >= wanted)
    table, topic, year = rate * 86_400 * 90 * row, rate * 86_400 * 7 * 3 * record, rate * 86_400 * 365 * parquet
    costs = [
        workers / 4 * priced("EC2 m7g.large")[0] * 730,
        2 * classes[name] * 730 + table / 1e9 * 2 * priced("RDS gp3")[0],
        3 * priced("MSK kafka.m7g.large")[0] * 730 + topic / 1e9 * priced("MSK storage")[0],
        year / 1e9 * priced("S3 standard")[0],
    ]
    stored = [f"{table / 1e12:.2f} TB", f"{topic / 1e9:.0f} GB", f"{year / 1e12:.2f} TB"]
    cells = [f"{rate:,}", f"{workers} ({max(workers * floor, busy):.2f})", f"db.r8g.{name} ({wanted:.2f})", *stored]
    return [*cells, *(f"{cost:,.0f}" for cost in costs), f"**{sum(costs):,.0f}**"]


def test_sizes_and_costs_are_what_the_arithmetic_gives():
    rows = [[cell.strip() for cell in row.split("|")] for row in re.findall(r"^\| ([\d,]+ \| \d+ \(.*) \|$", TEXT, re.M)]
    assert [row[0] for row in rows] == ["100", "1,000", "5,000", "20,000"]
    for row in rows:
        assert row == sized(int(row[0].replace(",", "")))
