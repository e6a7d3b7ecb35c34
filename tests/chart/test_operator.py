"""docs/runbooks/README.md, "Decisions": its shell function makes a job of the chart's CronJob that runs what was said, and nothing else."""

import json
import re
import subprocess

import pytest
import rendering
from rendering import ROOT

PAGE = (ROOT / "docs" / "runbooks" / "README.md").read_text()
RECIPE = re.search(r"^as_operator\(\) \{.*?^\}$", PAGE, re.M | re.S)[0]

# Makes a job of a CronJob as kubectl does, keeps what is created, and has no logs at first.
KUBECTL = """#!/bin/sh
here=$(dirname "$0")
echo "$1 $2" >>"$here/calls"
case "$*" in
    *"--dry-run=client -o json"*) cat "$here/job.json" ;;
    *"create -f -"*) cat >"$here/created.json"; [ -s "$here/created.json" ] ;;
    *" logs "*) [ -e "$here/waited" ] || { touch "$here/waited"; echo "ContainerCreating" >&2; exit 1; }; echo "accepted" ;;
    *" get pods "*) echo 0 ;;
    *) exit 9 ;;
esac
"""


@pytest.fixture
def fake(tmp_path):
    cron = rendering.rendered("full").one("CronJob", "-operator")
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "x"}, "spec": cron["spec"]["jobTemplate"]["spec"]}
    (tmp_path / "job.json").write_text(json.dumps(job))
    (tmp_path / "kubectl").write_text(KUBECTL)
    (tmp_path / "kubectl").chmod(0o755)
    return tmp_path


@pytest.mark.parametrize(
    "words",
    [
        ["ledger", "accept-gap", "--partition", "3", "--to", "4711", "--reason", "it's \"gone\", and $HOME is not"],
        ["rejects", "accept", "--reason", "the client was rolled back"],
        ["ledger", "reconcile", "--dry-run"],
    ],
    ids=lambda words: words[1],
)
def test_a_decision_is_run_as_it_was_said(fake, words):
    command = ["bash", "-euc", f'PATH={fake}:$PATH\n{RECIPE}\nas_operator "$@"', "bash", *words]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["accepted", "0"]
    template, created = (json.loads((fake / f"{name}.json").read_text()) for name in ("job", "created"))
    (container,) = created["spec"]["template"]["spec"]["containers"]
    assert container.pop("args") == words
    template["spec"]["template"]["spec"]["containers"][0].pop("args")
    assert created == template, "the rest is the chart's"
    for call in (fake / "calls").read_text().splitlines():
        assert call == "-n pipelines"


def test_the_pages_name_is_that_of_the_guides_release():
    assert "--from=cronjob/feed-worker-operator" in RECIPE
    assert "helm install feed-worker helm/feed-worker --namespace pipelines" in (ROOT / "docs" / "deploy.md").read_text()
