"""Every fixture renders, alike under helm 4 and helm 3, and is what Kubernetes and the operators take."""

import subprocess

import pytest
import rendering
from rendering import CHART, FIXTURES, TOOLS, yaml

SCHEMAS = TOOLS / "schemas"
LOCATIONS = [
    SCHEMAS / "{{ .NormalizedKubernetesVersion }}" / "{{ .ResourceKind }}{{ .KindSuffix }}.json",
    SCHEMAS / "crds" / "{{ .ResourceKind }}_{{ .ResourceAPIVersion }}.json",
]


def versions():
    """Those that Chart.yaml claims and a schema is there for."""
    claimed = yaml.safe_load((CHART / "Chart.yaml").read_text())["kubeVersion"]
    assert claimed == ">=1.30.0-0"
    return [f"1.{minor}.0" for minor in range(30, 38)]


def validate(text, version):
    options = [part for location in LOCATIONS for part in ("-schema-location", str(location))]
    command = [TOOLS / "kubeconform", "-strict", "-summary", "-kubernetes-version", version, *options]
    ended = subprocess.run(command, input=text, capture_output=True, text=True)
    return ended.returncode, ended.stdout + ended.stderr


@pytest.mark.parametrize("helm", ["helm", "helm3"])
@pytest.mark.parametrize("fixture", FIXTURES)
def test_lints(fixture, helm):
    values = CHART / "ci" / f"{fixture}-values.yaml"
    command = [TOOLS / helm, "lint", CHART, "--values", values, "--namespace", "x"]
    # Lint knows no operators.
    if fixture in ("full", "msk-iam"):
        command += ["--set", "autoscaling.mode=none"]
    ended = subprocess.run(command, capture_output=True, text=True)
    said = ended.stdout + ended.stderr
    assert ended.returncode == 0 and "[ERROR]" not in said and "icon" not in said, said


@pytest.mark.parametrize("fixture", FIXTURES)
def test_both_helms_render_the_same(fixture):
    def objects(helm):
        found = rendering.parse(rendering.text(fixture, helm=helm))
        return sorted(((one["kind"], one["metadata"]["name"], one) for one in found), key=lambda one: one[:2])

    assert objects("helm") == objects("helm3")


@pytest.mark.parametrize("version", versions())
@pytest.mark.parametrize("fixture", FIXTURES)
def test_kubernetes_takes_it(fixture, version):
    code, said = validate(rendering.text(fixture), version)
    assert code == 0, said
    assert "Errors: 0, Skipped: 0" in said, said


@pytest.mark.parametrize(
    ("changed", "to", "named"),
    [
        ("minReadySeconds: 15", "minReadySecond: 15", "minReadySecond"),
        ("minReplicaCount: 2", "minReplicaCount: two", "minReplicaCount"),
        ("podMetricsEndpoints:", "podMetricEndpoints:", "podMetricEndpoints"),
        ("secretKey: url", "secretKy: url", "secretKy"),
    ],
)
def test_what_kubernetes_would_not_take_is_noticed(changed, to, named):
    """The judge can say no: about Kubernetes's own objects and about the operators'."""
    text = rendering.text("full")
    assert changed in text
    code, said = validate(text.replace(changed, to, 1), "1.33.0")
    assert code != 0 and named in said, said


def test_a_cluster_that_is_too_old_is_refused():
    ended = rendering.run("minimal", "--kube-version", "1.29.9")
    assert ended.returncode != 0 and "1.30" in ended.stderr
    assert rendering.run("minimal", "--kube-version", "v1.30.2-eks-1").returncode == 0


def test_monitors_wait_for_their_operator():
    kinds = {one["kind"] for one in rendering.parse(rendering.text("full", apis=["keda.sh/v1alpha1"]))}
    assert not kinds & {"PodMonitor", "ServiceMonitor", "PrometheusRule", "DatadogMonitor"}


def test_the_notes_say_what_to_check_next():
    def notes(fixture, *options):
        command = [TOOLS / "helm", "install", "feed", CHART, "--dry-run=client", "-f", CHART / "ci" / f"{fixture}-values.yaml"]
        ended = subprocess.run([*command, "-n", "pipelines", *options], capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout.partition("NOTES:")[2]

    said = notes("minimal")
    assert "kubectl -n pipelines rollout status deployment/feed-feed-worker" in said
    assert "--from=cronjob/feed-feed-worker-maintain" in said and "--from=cronjob/feed-feed-worker-audit" in said
    assert "Nobody is paged" in said and "Nobody can decide yet" in said
    assert "2 for 6 partitions" in said
    said = notes("full", "--set", "autoscaling.mode=hpa")
    assert "Nobody is paged" not in said and "Nobody can decide" not in said
    assert "cronjob/feed-feed-worker-operator" in said
    assert "NOT INSTALLED: monitors.prometheus" in said and "NOT INSTALLED: monitors.datadog" in said
    assert "cronjob" not in notes("gitops")
