"""The chart's alerts, rendered without Kubernetes, and Prometheus's own tool to try them with."""

import json
import re
import subprocess
import time

import yaml

from harness import ROOT, Background

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


def run(folder, tests, interval="1m", scope=SCOPE, more=(), **holding):
    """promtool's verdict about tests of (series → values, [(name, how many fire, when)]), and what `more` asks of each."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rules.yaml").write_text(yaml.safe_dump(rules(scope, **holding)))
    written = {
        "rule_files": ["rules.yaml"],
        "evaluation_interval": interval,
        "tests": [
            {
                "interval": interval,
                "input_series": [{"series": series, "values": values} for series, values in given.items()],
                "promql_expr_test": [*(firing(*one) for one in wanted), *more],
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


class Recorder(Background):
    """Reads workers' pages while something happens to them, and gives the series to promtool: what was read every half a
    second is told as if it were a minute (or whatever a rule is told), so that windows need not be shortened."""

    def __init__(self, every_s=0.5):
        super().__init__()
        self.every_s = every_s
        self.looks = []
        self._workers = []

    def watch(self, worker):
        self._workers = [*self._workers, worker]

    def forget(self, worker):
        """Whose page cannot be read, as of a process that is stopped: a scrape of it fails."""
        self._workers = [one for one in self._workers if one is not worker]

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
            self._stop.wait(max(0.0, due - time.monotonic()))

    @property
    def now(self):
        """The number of the last look."""
        return len(self.looks) - 1

    def series(self, names, scope, last):
        """promtool's notation of the series of these names up to a look. As Prometheus does at a scrape, a series that was
        there before and is not on the page is ended."""
        looks = self.looks[: last + 1]
        wanted = {series for look in looks for series in look if series.partition("{")[0] in names and scope in series}
        return {series: " ".join(_values(series, looks)) for series in sorted(wanted)}


def _values(series, looks):
    was_there = False
    for look in looks:
        value = look.get(series)
        yield _number(value) if value is not None else "stale" if was_there else "_"
        was_there = value is not None


def _number(value):
    # promtool takes the + of an exponent for a step.
    return str(int(value)) if value.is_integer() else f"{value:.6f}"


class Recording:
    """What one alert says of what was recorded: its rule as the chart renders it, over its own series."""

    def __init__(self, recorder, folder, scope, minutes=1.0, labels="", **values):
        """`minutes`: what the time between two looks is told as; `values`: of the rule's placeholders, its threshold."""
        self.recorder, self.folder, self.scope = recorder, folder, scope
        self.minutes, self.labels, self.values = minutes, labels, values
        self.began = None

    def says(self, name, wanted):
        """Whether promtool finds what is wanted: [(look, looks back, whether the alert fired in them)]."""
        one = alert(name) | self.values
        rule = {"alert": f"FeedWorker{name}", "expr": expression(one, "prometheus", self.scope)}
        rule |= {"for": one["prometheus"]["for"]} if "for" in one["prometheus"] else {}
        names = set(re.findall(r"\bfeed_worker_\w+", rule["expr"]))
        last = max(at for at, _, _ in wanted)
        fired = f'ALERTS{{alertname="FeedWorker{name}",alertstate="firing"{self.labels}}}'
        self.folder.mkdir(parents=True, exist_ok=True)
        rules_path, tests_path = self.folder / f"{name}-rules.yaml", self.folder / f"{name}-tests.yaml"
        rules_path.write_text(json.dumps({"groups": [{"name": "feed-worker", "rules": [rule]}]}))
        interval_s = round(self.minutes * 60)
        tests = {
            "interval": f"{interval_s}s",
            "input_series": [
                {"series": series, "values": values} for series, values in self.recorder.series(names, self.scope, last).items()
            ],
            "promql_expr_test": [
                {
                    "expr": f"(count(max_over_time({fired}[{back * interval_s - 1}s])) or vector(0)) > bool 0",
                    "eval_time": f"{at * interval_s}s",
                    "exp_samples": [{"labels": "{}", "value": int(does)}],
                }
                for at, back, does in wanted
            ],
        }
        whole = {"rule_files": [rules_path.name], "evaluation_interval": f"{interval_s}s", "tests": [tests]}
        tests_path.write_text(json.dumps(whole))
        return promtool("test", "rules", tests_path)


def shows(folder, query, series, minutes):
    """promtool's verdict whether a query has a value at any time, given series by the minute."""
    rules, tests = folder / "panel-rules.yaml", folder / "panel-tests.yaml"
    rules.write_text(json.dumps({"groups": [{"name": "panel", "rules": [{"record": "panel", "expr": query}]}]}))
    test = {
        "interval": "1m",
        "input_series": [{"series": one, "values": values} for one, values in series.items()],
        "promql_expr_test": [
            {
                "expr": f"count(count_over_time(panel[{minutes}m])) > bool 0",
                "eval_time": f"{minutes}m",
                "exp_samples": [{"labels": "{}", "value": 1}],
            }
        ],
    }
    whole = {"rule_files": [rules.name], "evaluation_interval": "1m", "tests": [test]}
    tests.write_text(json.dumps(whole))
    return promtool("test", "rules", tests)
