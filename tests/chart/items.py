"""What an operator relies on, one check each, held against the chart rendered with a fixture of helm/feed-worker/ci.

test_items.py runs them, and takes every line out of every template to see that one of them fails.
"""

import hashlib

from rendering import NAMESPACE, environment

ITEMS = []
NAME = "feed-feed-worker"
WORKER = {"app.kubernetes.io/name": "feed-worker", "app.kubernetes.io/instance": "feed", "app.kubernetes.io/component": "worker"}
RELEASE = {name: value for name, value in WORKER.items() if not name.endswith("component")}
CRON_JOBS = ("maintain", "topics-drift", "audit", "operator")


def item(fixture):
    def register(check):
        ITEMS.append((fixture, check))
        return check

    return register


def secret(name, key):
    return {"secretKeyRef": {"name": name, "key": key}}


# ---- every object, every pod ---------------------------------------------------------------------------------------


@item("full")
def every_object_is_known_by_its_labels(chart):
    ours = [one for one in chart if one["kind"] != "ExternalSecret"]
    assert len(ours) >= 30
    for one in ours:
        labels = one["metadata"]["labels"]
        assert labels["helm.sh/chart"] == "feed-worker-0.1.0"
        assert RELEASE.items() <= labels.items(), one["kind"]
        assert labels["app.kubernetes.io/version"] == "0.1.0"
        assert labels["app.kubernetes.io/managed-by"] == "Helm"
        assert labels["app.kubernetes.io/part-of"] == "feed-worker"
        assert labels["team"] == "feed", "commonLabels"
        assert one["metadata"]["annotations"]["example.com/owner"] == "feed-platform", f"commonAnnotations: {one['kind']}"


@item("full")
def every_object_is_of_the_version_that_is_served(chart):
    versions = {one["kind"]: one["apiVersion"] for one in chart}
    expected = {
        "ServiceAccount": "v1",
        "ConfigMap": "v1",
        "Deployment": "apps/v1",
        "CronJob": "batch/v1",
        "Job": "batch/v1",
        "NetworkPolicy": "networking.k8s.io/v1",
        "PodDisruptionBudget": "policy/v1",
        "ScaledObject": "keda.sh/v1alpha1",
        "TriggerAuthentication": "keda.sh/v1alpha1",
        "PodMonitor": "monitoring.coreos.com/v1",
    }
    assert expected.items() <= versions.items(), versions


@item("full")
def every_pod_meets_the_restricted_standard_and_more(chart):
    pods = list(chart.pods())
    assert len(pods) == 6
    for name, _, pod in pods:
        assert pod["automountServiceAccountToken"] is False, name
        assert pod["enableServiceLinks"] is False, name
        security = pod["securityContext"]
        assert security["runAsNonRoot"] is True and security["runAsUser"] == 65532 == security["runAsGroup"], name
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}, name
        for container in pod["containers"]:
            security = container["securityContext"]
            assert security["allowPrivilegeEscalation"] is False, name
            assert security["readOnlyRootFilesystem"] is True, name
            assert security["capabilities"] == {"drop": ["ALL"]}, name
            # A hostPath, or a port of the host, would be refused by the standard.
            assert not any("hostPath" in volume for volume in pod.get("volumes", [])), name
            assert not any("hostPort" in port for port in container.get("ports", [])), name


@item("full")
def every_pod_goes_where_it_is_wanted(chart):
    for name, metadata, pod in chart.pods():
        assert pod["priorityClassName"] == "pipelines", name
        assert pod["nodeSelector"] == {"kubernetes.io/arch": "amd64"}, name
        assert pod["tolerations"] == [{"key": "pipelines", "operator": "Exists"}], name
        assert "preferredDuringSchedulingIgnoredDuringExecution" in pod["affinity"]["nodeAffinity"], name
        assert pod["imagePullSecrets"] == [{"name": "registry-of-images"}], name
        assert RELEASE.items() <= metadata["labels"].items(), f"{name}: the network policy is for all of them"


@item("full")
def images_are_known_by_their_digest(chart):
    digest = "123456789012.dkr.ecr.eu-central-1.amazonaws.com/feed-worker@sha256:6c3c624b58dbbcd3c0dd82b4c53f04194d1247c6eebdaab7c610cf7d66709b3b"
    for name, _, pod in chart.pods():
        for container in pod["containers"]:
            assert container["image"] == digest, name
            assert container["imagePullPolicy"] == "IfNotPresent", name
            assert container["terminationMessagePolicy"] == "FallbackToLogsOnError", name


@item("minimal")
def without_a_digest_the_image_is_of_the_charts_version(chart):
    assert chart.worker["image"] == "feed-worker:0.1.0"


@item("full")
def every_pod_has_the_cas_and_what_else_is_mounted(chart):
    for name, _, pod in chart.pods():
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        assert volumes["ca"]["configMap"] == {"name": "feed-cas", "items": [{"key": "all.pem", "path": "all.pem"}]}, name
        assert volumes["extra"] == {"name": "extra", "emptyDir": {"sizeLimit": "16Mi"}}, name
        mounts = pod["containers"][0]["volumeMounts"]
        assert {"name": "ca", "mountPath": "/etc/feed-worker/ca", "readOnly": True} in mounts, name
        assert {"name": "extra", "mountPath": "/extra"} in mounts, name


@item("full")
def every_limit_of_memory_is_set(chart):
    for name, _, pod in chart.pods():
        for container in pod["containers"]:
            assert container["resources"]["limits"]["memory"], name
            assert container["resources"]["requests"]["cpu"], name
    assert chart.worker["resources"] == {"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"memory": "1Gi"}}


# ---- the workers ---------------------------------------------------------------------------------------------------


@item("minimal")
def a_rollout_replaces_one_worker_after_the_other(chart):
    spec = chart.deployment
    assert spec["strategy"] == {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}}
    assert spec["minReadySeconds"] == 15
    assert spec["progressDeadlineSeconds"] == 600
    assert spec["revisionHistoryLimit"] == 5


@item("minimal")
def the_number_of_workers_is_fixed_without_autoscaling(chart):
    assert chart.deployment["replicas"] == 2
    assert chart.all("HorizontalPodAutoscaler") == chart.all("ScaledObject") == []


@item("minimal")
def the_deployment_finds_its_pods_and_no_jobs(chart):
    assert chart.deployment["selector"] == {"matchLabels": WORKER}
    assert WORKER.items() <= chart.deployment["template"]["metadata"]["labels"].items()
    assert chart.one("Deployment")["metadata"]["labels"]["app.kubernetes.io/component"] == "worker"
    for name, metadata, _ in chart.pods():
        is_worker = metadata["labels"]["app.kubernetes.io/component"] == "worker"
        assert is_worker == name.startswith("Deployment"), name


@item("minimal")
def the_worker_runs_and_nothing_else(chart):
    assert chart.worker["args"] == ["run"]
    assert "command" not in chart.worker, "the image's entry point"


@item("full")
def another_configuration_is_another_pod(chart):
    annotations = chart.deployment["template"]["metadata"]["annotations"]
    # The block of the ConfigMap ends with a line break, the text does not.
    expected = hashlib.sha256(chart.config().rstrip("\n").encode()).hexdigest()
    assert annotations["checksum/config"] == expected
    assert annotations["reloader.stakater.com/auto"] == "true", "podAnnotations, for a changed Secret"
    assert chart.deployment["template"]["metadata"]["labels"]["cost-centre"] == "feed"


@item("minimal")
def probes_ask_the_health_endpoints(chart):
    worker = chart.worker
    assert worker["ports"] == [{"name": "health", "containerPort": 8080}]
    for probe, path in [("startup", "live"), ("liveness", "live"), ("readiness", "ready")]:
        asked = worker[f"{probe}Probe"]
        assert asked["httpGet"] == {"path": f"/health/{path}", "port": "health"}, probe
        assert asked["periodSeconds"] and asked["timeoutSeconds"] and asked["failureThreshold"], probe
    startup = worker["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 60


@item("full")
def the_grace_period_is_the_one_of_values(chart):
    assert chart.pod["terminationGracePeriodSeconds"] == 90


@item("minimal")
def workers_are_spread_over_zones_and_nodes(chart):
    spread = chart.pod["topologySpreadConstraints"]
    assert [one["topologyKey"] for one in spread] == ["topology.kubernetes.io/zone", "kubernetes.io/hostname"]
    for one in spread:
        assert one["whenUnsatisfiable"] == "ScheduleAnyway" and one["maxSkew"] == 1
        assert one["labelSelector"] == {"matchLabels": WORKER}


@item("minimal")
def one_worker_at_a_time_is_evicted(chart):
    budget = chart.one("PodDisruptionBudget")["spec"]
    assert budget == {
        "maxUnavailable": 1,
        "unhealthyPodEvictionPolicy": "AlwaysAllow",
        "selector": {"matchLabels": WORKER},
    }


@item("full")
def the_worker_reads_its_configuration_from_the_file(chart):
    assert environment(chart.worker)["FEED_WORKER_CONFIG"] == "/etc/feed-worker/config.yaml"
    mount = {"name": "config", "mountPath": "/etc/feed-worker/config.yaml", "subPath": "config.yaml", "readOnly": True}
    assert mount in chart.worker["volumeMounts"]
    assert {"name": "config", "configMap": {"name": NAME}} in chart.pod["volumes"]


@item("full")
def secrets_come_by_reference_only(chart):
    found = environment(chart.worker)
    assert found["DATABASE_URL"] == secret("feed-worker-database", "url")
    assert found["FEED_WORKER_KAFKA__PASSWORD"] == secret("feed-worker-kafka", "password")
    assert found["FEED_WORKER_REGISTRY__PASSWORD"] == secret("feed-worker-registry", "password")
    assert found["RUST_LOG"] == "info", "extraEnv"
    assert chart.all("Secret") == [], "the chart makes none"


@item("full")
def every_role_has_every_server(chart):
    containers = {"worker": chart.worker} | {name: chart.cron_job(name)[3] for name in ("maintain", "audit", "operator")}
    roles = {"worker": "worker", "maintain": "maintainer", "audit": "reader", "operator": "operator"}
    for name, container in containers.items():
        more = environment(container)["FEED_WORKER_POSTGRES__MORE_URLS"]
        assert more == secret(f"feed-{roles[name]}-database", "more-urls"), name
    _, _, _, drift = chart.cron_job("topics-drift")
    assert "FEED_WORKER_POSTGRES__MORE_URLS" not in environment(drift)


@item("minimal")
def one_server_is_one_variable(chart):
    assert "FEED_WORKER_POSTGRES__MORE_URLS" not in environment(chart.worker)


@item("full")
def an_external_secret_can_be_part_of_the_release(chart):
    (external,) = chart.all("ExternalSecret")
    assert external["spec"]["target"]["name"] == "feed-worker-database"
    assert external["spec"]["data"][0]["remoteRef"]["key"] == f"{NAMESPACE}/feed-worker", "a template"


@item("full")
def metrics_go_to_the_agent_of_the_node(chart):
    found = environment(chart.worker)
    assert found["HOST_IP"] == {"fieldRef": {"fieldPath": "status.hostIP"}}
    assert found["FEED_WORKER_STATSD__ADDR"] == "$(HOST_IP):8125"
    names = list(found)
    assert names.index("HOST_IP") < names.index("FEED_WORKER_STATSD__ADDR"), "or it is not put in"
    assert found["DD_ENTITY_ID"] == {"fieldRef": {"fieldPath": "metadata.uid"}}
    assert (found["DD_ENV"], found["DD_SERVICE"], found["DD_VERSION"]) == ("production", "feed-worker", "0.1.0")


@item("hpa")
def metrics_go_to_an_agent_with_an_address(chart):
    assert "FEED_WORKER_STATSD__ADDR" not in environment(chart.worker)
    assert "addr: datadog.monitoring.svc:8126" in chart.config()


@item("full")
def the_role_is_assumed_through_the_service_account(chart):
    account = chart.one("ServiceAccount")
    assert account["metadata"]["annotations"]["eks.amazonaws.com/role-arn"] == "arn:aws:iam::123456789012:role/feed-worker"
    assert account["automountServiceAccountToken"] is False
    assert chart.pod["serviceAccountName"] == NAME
    assert {chart.cron_job(name)[2]["serviceAccountName"] for name in ("maintain", "audit", "operator")} == {NAME}


@item("hpa")
def a_service_account_can_be_somebody_elses(chart):
    assert chart.all("ServiceAccount") == []
    assert chart.pod["serviceAccountName"] == "shared"


@item("msk-iam")
def with_iam_no_secret_for_kafka_is_anywhere(chart):
    account = chart.one("ServiceAccount")
    assert account["metadata"]["annotations"]["eks.amazonaws.com/role-arn"] == "arn:aws:iam::123456789012:role/feed-worker"
    for name, _, pod in chart.pods():
        for container in pod["containers"]:
            assert not [variable for variable in environment(container) if "KAFKA" in variable], name
    (policy,) = chart.all("NetworkPolicy")
    ports = [port["port"] for port in policy["spec"]["egress"][1]["ports"]]
    assert 9098 in ports and 443 in ports, "the brokers, and STS"
    (trigger,) = chart.one("ScaledObject")["spec"]["triggers"]
    assert (trigger["metadata"]["saslTokenProvider"], trigger["metadata"]["awsRegion"]) == ("aws_msk_iam", "eu-central-1")
    assert chart.one("TriggerAuthentication")["spec"] == {"podIdentity": {"provider": "aws"}}
    assert [one["metadata"]["name"] for one in chart.all("CronJob")] == [f"{NAME}-maintain", f"{NAME}-audit"]


@item("full")
def cas_of_ones_own_count_for_registry_and_store_too(chart):
    pods = [found for found in chart.pods() if not found[0].endswith("-migrate")]  # only Postgres, which is told by sslrootcert
    assert len(pods) >= 3
    for name, _, pod in pods:
        for container in pod["containers"]:
            mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
            assert environment(container)["SSL_CERT_DIR"] == mounts["ca"], name


@item("mtls")
def certificate_and_key_are_mounted_where_the_configuration_says(chart):
    for name, _, pod in chart.pods():
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        assert volumes["kafka-certificate"]["secret"]["secretName"] == "feed-worker-kafka", name
        assert volumes["kafka-certificate"]["secret"]["defaultMode"] == 0o440, name
        assert pod["securityContext"]["fsGroup"] == 65532 == pod["securityContext"]["runAsUser"], name
        mounts = {mount["name"]: mount for mount in pod["containers"][0]["volumeMounts"]}
        assert mounts["kafka-certificate"]["readOnly"] is True, name
        folders = {mounts["kafka-certificate"]["mountPath"], mounts["ca"]["mountPath"]}
        if name.endswith("-migrate"):
            continue
        for key in ("ca_file", "certificate_file", "private_key_file"):
            (path,) = [line.split(": ")[1] for line in chart.config().splitlines() if line.strip().startswith(f"{key}:")]
            assert path.rpartition("/")[0] in folders, f"{name}: {path}"
    assert environment(chart.worker)["FEED_WORKER_REGISTRY__TOKEN"] == secret("feed-worker-registry", "token")


# ---- network -------------------------------------------------------------------------------------------------------


@item("minimal")
def pods_reach_what_the_configuration_names_and_nothing_reaches_them(chart):
    policy = chart.one("NetworkPolicy")["spec"]
    assert policy["podSelector"] == {"matchLabels": RELEASE}
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert policy["ingress"] == []
    dns, services, statsd = policy["egress"]
    assert dns == {"ports": [{"protocol": "UDP", "port": 53}, {"protocol": "TCP", "port": 53}]}
    assert services == {"ports": [{"protocol": "TCP", "port": port} for port in (5432, 443, 9092)]}
    assert statsd == {"ports": [{"protocol": "UDP", "port": 8125}]}


@item("full")
def network_rules_can_be_narrowed_and_widened(chart):
    policy = chart.one("NetworkPolicy")["spec"]
    monitoring = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
    assert policy["ingress"] == [{"from": [monitoring], "ports": [{"protocol": "TCP", "port": 8080}]}]
    _, services, statsd, more = policy["egress"]
    assert [port["port"] for port in services["ports"]] == [5432, 443, 9096, 8443, 4318]
    assert services["to"] == [{"ipBlock": {"cidr": "10.0.0.0/16"}}]
    assert "to" not in statsd
    assert more["to"] == [{"ipBlock": {"cidr": "169.254.170.23/32"}}]


# ---- how many ------------------------------------------------------------------------------------------------------


def away_slowly(behavior):
    assert behavior["scaleUp"] == {"stabilizationWindowSeconds": 60}
    assert behavior["scaleDown"] == {
        "stabilizationWindowSeconds": 600,
        "policies": [{"type": "Pods", "value": 1, "periodSeconds": 300}],
    }


@item("hpa")
def the_load_decides_how_many(chart):
    assert chart.all("ScaledObject") == []
    assert "replicas" not in chart.deployment, "two would decide"
    spec = chart.one("HorizontalPodAutoscaler")["spec"]
    assert chart.one("HorizontalPodAutoscaler")["apiVersion"] == "autoscaling/v2"
    assert spec["scaleTargetRef"] == {"apiVersion": "apps/v1", "kind": "Deployment", "name": NAME}
    assert (spec["minReplicas"], spec["maxReplicas"]) == (1, 3)
    target = {"type": "Utilization", "averageUtilization": 70}
    assert spec["metrics"] == [{"type": "Resource", "resource": {"name": "cpu", "target": target}}]
    away_slowly(spec["behavior"])
    assert chart.one("HorizontalPodAutoscaler")["metadata"]["annotations"] == {"example.com/owner": "feed-platform"}
    assert RELEASE.items() <= chart.one("HorizontalPodAutoscaler")["metadata"]["labels"].items()


@item("full")
def the_lag_decides_how_many(chart):
    assert chart.all("HorizontalPodAutoscaler") == []
    assert "replicas" not in chart.deployment, "two would decide"
    spec = chart.one("ScaledObject")["spec"]
    assert spec["scaleTargetRef"] == {"name": NAME}
    assert (spec["minReplicaCount"], spec["maxReplicaCount"], spec["pollingInterval"]) == (2, 12, 30)
    assert spec["fallback"] == {"failureThreshold": 5, "replicas": 2, "behavior": "currentReplicasIfHigher"}
    away_slowly(spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"])
    (trigger,) = spec["triggers"]
    assert trigger["type"] == "kafka"
    assert trigger["metadata"] == {
        "bootstrapServers": "b-1.feed.example.com:9096,b-2.feed.example.com:9096",
        "topic": "feed.interactions.v1",
        "consumerGroup": "feed-worker",
        "lagThreshold": "50000",
        "offsetResetPolicy": "earliest",
        "excludePersistentLag": "true",
        "ensureEvenDistributionOfPartitions": "true",
        "tls": "enable",
        "sasl": "scram_sha512",
    }
    assert trigger["authenticationRef"] == {"name": NAME}
    references = chart.one("TriggerAuthentication")["spec"]["secretTargetRef"]
    assert [one["parameter"] for one in references] == ["username", "password"]


# ---- jobs ----------------------------------------------------------------------------------------------------------


@item("full")
def the_tables_are_migrated_first_by_a_role_of_its_own(chart):
    job = chart.migration()
    assert job["metadata"]["name"] == f"{NAME}-migrate"
    assert job["metadata"]["labels"]["app.kubernetes.io/component"] == "migrate"
    annotations = job["metadata"]["annotations"]
    assert annotations["helm.sh/hook"] == "pre-install,pre-upgrade"
    assert annotations["helm.sh/hook-delete-policy"] == "before-hook-creation,hook-succeeded"
    assert annotations["helm.sh/hook-weight"] == "0"
    assert annotations["example.com/phase"] == "migration"
    spec = job["spec"]
    assert spec["backoffLimit"] == 5 and spec["activeDeadlineSeconds"] == 3600
    rule = {"containerName": "migrate", "operator": "In", "values": [64, 66]}
    assert spec["podFailurePolicy"] == {"rules": [{"action": "FailJob", "onExitCodes": rule}]}
    pod = spec["template"]["spec"]
    assert pod["restartPolicy"] == "Never"
    container = chart.container(pod, "migrate")
    assert container["args"] == ["migrate", "--grants"]
    assert environment(container) == {
        "DATABASE_URL": secret("feed-migrator-database", "url"),
        "FEED_WORKER_POSTGRES__MORE_URLS": secret("feed-migrator-database", "more-urls"),
        "FEED_WORKER_POSTGRES__PLACEMENT": "6-11: 1",
        "FEED_WORKER_POSTGRES__LANES": "1",
    }
    # Before the first install there is nothing of the release yet.
    assert "serviceAccountName" not in pod
    assert all(volume.get("configMap", {}).get("name") != NAME for volume in pod["volumes"])


@item("gitops")
def the_migration_can_be_a_plain_job(chart):
    job = chart.migration()
    assert job["metadata"]["annotations"] == {
        "argocd.argoproj.io/hook": "PreSync",
        "argocd.argoproj.io/hook-delete-policy": "HookSucceeded",
    }
    # A Job cannot be changed: its name follows the image.
    image = job["spec"]["template"]["spec"]["containers"][0]["image"]
    assert job["metadata"]["name"] == f"{NAME}-migrate-{hashlib.sha256(image.encode()).hexdigest()[:8]}"
    assert job["spec"]["ttlSecondsAfterFinished"] == 86400


@item("gitops")
def jobs_can_be_switched_off(chart):
    assert chart.all("CronJob") == []


@item("full")
def scheduled_jobs_run_once_and_stop_on_what_they_find(chart):
    for name in CRON_JOBS:
        spec, job, pod, container = chart.cron_job(name)
        assert len(spec["schedule"].split()) == 5 and spec["timeZone"] == "Etc/UTC", name
        assert spec["concurrencyPolicy"] == "Forbid", name
        assert spec["startingDeadlineSeconds"] == 1800, name
        assert (spec["successfulJobsHistoryLimit"], spec["failedJobsHistoryLimit"]) == (1, 3), name
        assert job["backoffLimit"] == (0 if name == "operator" else 3) and job["activeDeadlineSeconds"] >= 300, name
        assert spec.get("suspend", False) is (name == "operator"), name
        found, disrupted = job["podFailurePolicy"]["rules"]
        assert found["action"] == "FailJob", name
        assert found["onExitCodes"] == {"containerName": name, "operator": "In", "values": [2, 64, 66]}, name
        assert disrupted == {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}, name
        assert pod["restartPolicy"] == "Never", name
        assert environment(container)["FEED_WORKER_CONFIG"] == "/etc/feed-worker/config.yaml", name
        mount = {"name": "config", "mountPath": "/etc/feed-worker/config.yaml", "subPath": "config.yaml", "readOnly": True}
        assert mount in container["volumeMounts"], name
        assert {"name": "config", "configMap": {"name": NAME}} in pod["volumes"], name
        assert chart.one("CronJob", f"-{name}")["metadata"]["labels"]["app.kubernetes.io/component"] == name


@item("full")
def maintenance_is_of_a_role_that_owns_the_tables(chart):
    spec, _, _, container = chart.cron_job("maintain")
    assert container["args"] == ["maintain"]
    assert spec["schedule"] == "15 3 * * *"
    assert environment(container)["DATABASE_URL"] == secret("feed-maintainer-database", "url")


@item("full")
def somebody_notices_that_topics_were_changed(chart):
    spec, job, pod, container = chart.cron_job("topics-drift")
    assert container["args"] == ["topics", "drift", "--file", "/etc/feed-worker/topics.yaml", "--environment", "production"]
    assert spec["schedule"] == "17 * * * *" and job["activeDeadlineSeconds"] == 300
    assert "DATABASE_URL" not in environment(container)
    assert environment(container)["FEED_WORKER_KAFKA__CLIENT_ID"] == "feed-drift"
    assert "FEED_WORKER_KAFKA__CLIENT_ID" not in environment(chart.worker), "only this job's"
    assert pod["serviceAccountName"] == "feed-drift"
    own = {"name": "config", "mountPath": "/etc/feed-worker/topics.yaml", "subPath": "topics.yaml", "readOnly": True}
    assert own in container["volumeMounts"]
    assert chart.one("ConfigMap")["data"]["topics.yaml"] == "version: 1\ntopics: []\n"


@item("minimal")
def without_a_contract_of_its_own_the_images_counts(chart):
    _, _, _, container = chart.cron_job("topics-drift")
    assert container["args"] == ["topics", "drift", "--file", "/etc/feed-worker/topics.yaml"]
    assert [mount["mountPath"] for mount in container["volumeMounts"]] == ["/etc/feed-worker/config.yaml"]


@item("full")
def the_closed_day_is_audited_before_it_is_read(chart):
    spec, job, _, container = chart.cron_job("audit")
    assert container["args"] == ["audit", "--day", "yesterday"]
    minute, hour = spec["schedule"].split()[:2]
    assert 5 < int(hour) * 60 + int(minute) < 120, "after the day closes, before 02:00"
    assert job["activeDeadlineSeconds"] == 7200
    assert environment(container)["DATABASE_URL"] == secret("feed-reader-database", "url")


@item("full")
def an_operator_decides_by_a_role_of_ones_own_and_at_no_time_of_day(chart):
    spec, _, pod, container = chart.cron_job("operator")
    assert spec["suspend"] is True
    # To be replaced; as they are, they change nothing.
    assert container["args"] == ["ledger", "show"]
    assert environment(container)["DATABASE_URL"] == secret("feed-operator-database", "url")
    # Brokers, registry and bucket as the workers have them: `accept-gap` asks the first, `reconcile` the last.
    assert environment(container)["FEED_WORKER_KAFKA__PASSWORD"] == environment(chart.worker)["FEED_WORKER_KAFKA__PASSWORD"]
    assert pod["serviceAccountName"] == chart.pod["serviceAccountName"]


@item("minimal")
def nobody_decides_unless_it_is_asked_for(chart):
    assert [one["metadata"]["name"] for one in chart.all("CronJob")] == [f"{NAME}-{name}" for name in CRON_JOBS[:3]]


# ---- monitors ------------------------------------------------------------------------------------------------------


@item("full")
def prometheus_finds_the_workers(chart):
    monitor = chart.one("PodMonitor")
    assert monitor["metadata"]["namespace"] == "monitoring"
    assert monitor["metadata"]["labels"]["release"] == "prometheus"
    assert monitor["spec"]["namespaceSelector"] == {"matchNames": [NAMESPACE]}
    assert monitor["spec"]["selector"] == {"matchLabels": WORKER}
    assert monitor["spec"]["podMetricsEndpoints"] == [{"port": "health", "path": "/metrics", "interval": "30s"}]


@item("hpa")
def prometheus_finds_the_workers_by_a_service(chart):
    assert chart.all("PodMonitor") == []
    service = chart.one("Service")
    assert service["apiVersion"] == "v1" and service["metadata"]["labels"].items() >= WORKER.items()
    assert service["metadata"]["annotations"] == {"example.com/owner": "feed-platform"}
    assert service["spec"] == {
        "clusterIP": "None",
        "publishNotReadyAddresses": True,
        "selector": WORKER,
        "ports": [{"name": "health", "port": 8080, "targetPort": "health"}],
    }
    monitor = chart.one("ServiceMonitor")
    assert monitor["apiVersion"] == "monitoring.coreos.com/v1"
    assert monitor["metadata"]["namespace"] == "monitoring"
    assert monitor["metadata"]["labels"].items() >= {**RELEASE, "release": "prometheus"}.items()
    assert monitor["metadata"]["annotations"] == {"example.com/owner": "feed-platform"}
    assert monitor["spec"] == {
        "namespaceSelector": {"matchNames": [NAMESPACE]},
        "selector": {"matchLabels": WORKER},
        "endpoints": [{"port": "health", "path": "/metrics", "interval": "15s"}],
    }


@item("full")
def prometheus_needs_one_monitor(chart):
    assert chart.all("ServiceMonitor") == chart.all("Service") == []


@item("minimal")
def nothing_of_an_operator_that_was_not_asked_for(chart):
    foreign = [one["kind"] for one in chart if one["apiVersion"].split("/")[0].count(".") and "k8s.io" not in one["apiVersion"]]
    assert foreign == []
