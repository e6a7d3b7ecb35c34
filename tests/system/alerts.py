"""The chart's alerts, rendered without Kubernetes, and Prometheus's own tool to try them with."""

import json
import re
import subprocess
import threading
import time

import yaml

from harness import ROOT

CHART = ROOT / "helm" / "feed-worker"
ALERTS = yaml.safe_load((CHART / "alerts" / "alerts.yaml").read_text())
RUNBOOKS = ROOT / "docs" / "runbooks"
PROMTOOL = ROOT / "target" / "tools" / "promtool"
SCOPE = 'consumer_group="feed-worker"'


def alert(name):
    (found,) = (one for one in ALERTS if one["name"] == name)
    return found


def expression(one, form, scope):
    text = one[form]["expr" if form == "prometheus" else "query"]
    return text.replace("$scope", scope).replace("$threshold", str(one["threshold"]))


def rules(scope=SCOPE, **holding):
    """As the chart writes them into its PrometheusRule; `holding` gives alerts a `for` of their own."""
    found = []
    for one in ALERTS:
        rule = {"alert": f"FeedWorker{one['name']}", "expr": expression(one, "prometheus", scope)}
        hold = holding.get(one["name"], one["prometheus"].get("for"))
        found.append(
            rule
            | ({"for": hold} if hold else {})
            | {
                "labels": {"id": one["id"], "severity": one["severity"]},
                "annotations": {"summary": one["summary"], "description": one["description"]},
            }
        )
    return {"groups": [{"name": "feed-worker", "rules": found}]}


def promtool(*words):
    done = subprocess.run([PROMTOOL, *words], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def firing(name, expected, at):
    """What promtool is to find at a time: how many alerts of the name fire."""
    return {
        "expr": f'count(ALERTS{{alertname="FeedWorker{name}",alertstate="firing"}}) or vector(0)',
        "eval_time": at,
        "exp_samples": [{"labels": "{}", "value": expected}],
    }


def run(folder, tests, interval="1m", scope=SCOPE, **holding):
    """promtool's verdict about tests of (series → values, [(name, how many fire, when)])."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rules.yaml").write_text(yaml.safe_dump(rules(scope, **holding)))
    written = {
        "rule_files": ["rules.yaml"],
        "evaluation_interval": interval,
        "tests": [
            {
                "interval": interval,
                "input_series": [{"series": series, "values": values} for series, values in given.items()],
                "promql_expr_test": [firing(*one) for one in wanted],
            }
            for given, wanted in tests
        ],
    }
    (folder / "tests.yaml").write_text(yaml.safe_dump(written))
    return promtool("test", "rules", folder / "tests.yaml")


LINE = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$")


def page(worker):
    """The series of a worker's /metrics: name with labels → value; {} when it does not answer."""
    status, body = worker.health("/metrics")
    if status != 200:
        return {}
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in body.splitlines() if line and line[0] != "#"}


def names(text):
    """The names of a page's metrics, as they are declared there."""
    return {line.split()[2]: line.split()[3] for line in text.splitlines() if line.startswith("# TYPE")}


class Recorder:
    """Reads workers' pages while something happens to them, and gives the series to promtool: what was read every half a
    second is told as if it were a minute, so that windows need not be shortened."""

    def __init__(self, every_s=0.5):
        self.every_s = every_s
        self.looks = []
        self.marks = {}
        self._workers = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="recorder")

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()

    def watch(self, *workers):
        self._workers = list(workers)

    def _run(self):
        due = time.monotonic()
        while not self._stop.is_set():
            look = {}
            for worker in self._workers:
                for series, value in page(worker).items():
                    head, _, labels = series.partition("{")
                    look[f'{head}{{pod="{worker.name}",{labels}' if labels else f'{head}{{pod="{worker.name}"}}'] = value
            self.looks.append(look)
            due += self.every_s
            time.sleep(max(0.0, due - time.monotonic()))

    @property
    def now(self):
        """The number of the next look."""
        return len(self.looks)

    def wait(self, looks):
        """Until so many more were taken."""
        until = self.now + looks
        while self.now < until:
            time.sleep(self.every_s / 5)

    def series(self, like):
        """promtool's notation; `_` where a series was not on the page."""
        found = sorted({series for look in self.looks for series in look if re.match(like, series)})
        return {series: " ".join(f"{look[series]:g}" if series in look else "_" for look in self.looks) for series in found}

    def save(self, path):
        path.write_text(json.dumps({"every_s": self.every_s, "looks": self.looks}))
