"""Rendering the chart by helm, and finding objects in what comes out."""

import functools
import subprocess
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "helm" / "feed-worker"
TOOLS = ROOT / "target" / "tools" / "chart"
FIXTURES = sorted(path.name.removesuffix("-values.yaml") for path in (CHART / "ci").glob("*-values.yaml"))
RELEASE, NAMESPACE = "feed", "pipelines"
# Of the operators that a cluster may have.
APIS = ("keda.sh/v1alpha1", "monitoring.coreos.com/v1", "datadoghq.com/v1alpha1")


def run(fixture, *options, chart=CHART, helm="helm", apis=APIS):
    """`helm template` as it ends, with what it prints."""
    command = [TOOLS / helm, "template", RELEASE, chart, "--namespace", NAMESPACE]
    if fixture:
        command += ["--values", CHART / "ci" / f"{fixture}-values.yaml"]
    for api in apis:
        command += ["--api-versions", api]
    return subprocess.run([*map(str, command), *options], capture_output=True, text=True)


def text(fixture, *options, **how):
    ended = run(fixture, *options, **how)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


class Rendered(list):
    """The objects of a release."""

    def all(self, kind):
        return [found for found in self if found["kind"] == kind]

    def one(self, kind, suffix=""):
        """The object of a kind whose name is the release's, with what is put behind it."""
        name = f"{RELEASE}-feed-worker{suffix}"
        found = [one for one in self.all(kind) if one["metadata"]["name"] == name]
        assert len(found) == 1, f"{len(found)} objects {kind} {name} in {[(o['kind'], o['metadata']['name']) for o in self]}"
        return found[0]

    @property
    def deployment(self):
        return self.one("Deployment")["spec"]

    @property
    def pod(self):
        return self.deployment["template"]["spec"]

    @property
    def worker(self):
        return self.container(self.pod, "worker")

    @staticmethod
    def container(pod, name):
        (found,) = pod["containers"]
        assert found["name"] == name
        return found

    def cron_job(self, name):
        """Its spec, its job's, its pod's, and its container."""
        spec = self.one("CronJob", f"-{name}")["spec"]
        job = spec["jobTemplate"]["spec"]
        pod = job["template"]["spec"]
        return spec, job, pod, self.container(pod, name)

    def migration(self):
        found = [one for one in self.all("Job") if one["metadata"]["name"].startswith(f"{RELEASE}-feed-worker-migrate")]
        assert len(found) == 1, "one migration"
        return found[0]

    def pods(self):
        """What is put into pods: (name, metadata, spec) of every one."""
        for one in self:
            match one["kind"]:
                case "Deployment" | "Job":
                    template = one["spec"]["template"]
                case "CronJob":
                    template = one["spec"]["jobTemplate"]["spec"]["template"]
                case _:
                    continue
            yield f"{one['kind']} {one['metadata']['name']}", template["metadata"], template["spec"]

    def config(self):
        return self.one("ConfigMap")["data"]["config.yaml"]


def parse(stream):
    return Rendered(document for document in yaml.load_all(stream, Loader=yaml.CSafeLoader) if document)


@functools.cache
def _rendered(fixture, options):
    return text(fixture, *options)


def rendered(fixture, *options):
    return parse(_rendered(fixture, options))


def environment(container):
    """name → value, or what it is taken from."""
    listed = container.get("env", [])
    found = {one["name"]: one.get("value", one.get("valueFrom")) for one in listed}
    assert len(found) == len(listed), f"a variable twice: {[one['name'] for one in listed]}"
    return found
