//! What the configuration promises: precedence, refusals that name key and source, no secret in any output,
//! and a documentation that has every key.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use feed_worker::config::{Config, ConfigError, Format, Provenance, SECTIONS};
use serde_json::json;

const PASSWORD: &str = "hunter2-do-not-show";

type Loaded = Result<(Config, Provenance), ConfigError>;

/// Writes a YAML file of its own for a test.
fn file(name: &str, yaml: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("config-{name}.yaml"));
    std::fs::write(&path, yaml).unwrap();
    path
}

fn load(path: Option<&Path>, variables: &[(&str, &str)], sets: &[&str]) -> Loaded {
    let variables: Vec<_> = variables.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
    let sets: Vec<String> = sets.iter().map(|set| (*set).into()).collect();
    Config::load_from(path, &variables, &sets)
}

fn set(sets: &[&str]) -> Loaded {
    load(None, &[], sets)
}

/// The whole message of a refusal.
fn refusal(loaded: Loaded) -> String {
    loaded.expect_err("must be refused").to_string()
}

#[test]
fn defaults_go_together() {
    let (config, provenance) = set(&[]).unwrap();
    assert_eq!(config.kafka.topic, "feed.interactions.v1");
    assert_eq!(config.batch.rows_max, 20_000);
    assert_eq!(provenance.source("batch.rows_max"), "default");
}

#[test]
fn flags_go_before_environment_before_file_before_defaults() {
    let yaml = file("precedence", "kafka:\n  topic: file\n  group_id: file\n  client_id: file\n");
    let variables =
        [("FEED_WORKER_KAFKA__GROUP_ID", "environment"), ("FEED_WORKER_KAFKA__CLIENT_ID", "environment")];
    let sets = ["kafka.client_id=earlier", "kafka.client_id=flag"];
    let (config, provenance) = load(Some(&yaml), &variables, &sets).unwrap();
    assert_eq!(
        [&config.kafka.dlq_topic, &config.kafka.topic, &config.kafka.group_id, &config.kafka.client_id],
        ["feed.interactions.v1.dlq", "file", "environment", "flag"]
    );
    assert_eq!(provenance.source("kafka.dlq_topic"), "default");
    assert_eq!(provenance.source("kafka.topic"), format!("file {}", yaml.display()));
    assert_eq!(provenance.source("kafka.group_id"), "environment variable FEED_WORKER_KAFKA__GROUP_ID");
    assert_eq!(provenance.source("kafka.client_id"), "flag --set kafka.client_id");
}

#[test]
fn the_file_is_named_by_flag_or_environment() {
    let yaml = file("named", "kafka: {topic: by-environment}\n");
    let other = file("other", "kafka: {topic: by-flag}\n");
    let variables = [("FEED_WORKER_CONFIG", yaml.to_str().unwrap())];
    assert_eq!(load(None, &variables, &[]).unwrap().0.kafka.topic, "by-environment");
    assert_eq!(load(Some(&other), &variables, &[]).unwrap().0.kafka.topic, "by-flag");
}

#[test]
fn aliases_are_another_name_and_the_longer_one_goes_before() {
    let url = "postgres://u@alias/db";
    let aliases = [("DATABASE_URL", url), ("INTERACTION_WEIGHTS", "view:2")];
    let (config, provenance) = load(None, &aliases, &[]).unwrap();
    assert_eq!(config.postgres.url.expose(), url);
    assert_eq!(config.interactions.weights, "view:2");
    assert_eq!(provenance.source("postgres.url"), "environment variable DATABASE_URL");

    let both = [("FEED_WORKER_POSTGRES__URL", "postgres://u@longer/db"), ("DATABASE_URL", url)];
    assert_eq!(load(None, &both, &[]).unwrap().0.postgres.url.expose(), "postgres://u@longer/db");
}

#[test]
fn text_stays_text_where_text_is_wanted() {
    let variables = [
        ("FEED_WORKER_KAFKA__GROUP_ID", "007"),
        ("FEED_WORKER_REGISTRY__USERNAME", "true"),
        ("FEED_WORKER_REGISTRY__PASSWORD", "1e5"),
        ("FEED_WORKER_KAFKA__PROPERTIES__SASL_PASSWORD", "[1]"),
        ("FEED_WORKER_KAFKA__ALLOW_CREATE_TIME", "true"),
        ("FEED_WORKER_REJECTS__RATIO_MAX", "1"),
    ];
    let (config, _) = load(None, &variables, &[]).unwrap();
    assert_eq!(config.kafka.group_id, "007");
    assert_eq!(config.registry.username.as_deref(), Some("true"));
    assert_eq!(config.registry.password.unwrap().expose(), "1e5");
    assert_eq!(config.kafka.properties.get("sasl.password"), Some("[1]"));
    assert!(config.kafka.allow_create_time);
    assert!((config.rejects.ratio_max - 1.0).abs() < f64::EPSILON);
}

#[test]
fn librdkafka_properties_come_through_from_everywhere() {
    let yaml =
        file("properties", "kafka:\n  properties:\n    socket.keepalive.enable: true\n    retries: 7\n");
    let variables = [("FEED_WORKER_KAFKA__PROPERTIES__SASL_MECHANISM", "SCRAM-SHA-512")];
    let sets = ["kafka.properties.sasl.username=feed=worker"];
    let (config, provenance) = load(Some(&yaml), &variables, &sets).unwrap();
    let properties: Vec<_> =
        (&config.kafka.properties).into_iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    assert_eq!(
        properties,
        [
            ("retries", "7"),
            ("sasl.mechanism", "SCRAM-SHA-512"),
            ("sasl.username", "feed=worker"),
            ("socket.keepalive.enable", "true"),
        ]
    );
    assert_eq!(
        provenance.source("kafka.properties.sasl.mechanism"),
        "environment variable FEED_WORKER_KAFKA__PROPERTIES__SASL_MECHANISM"
    );
}

#[test]
fn properties_that_the_promises_rest_on_are_refused() {
    for name in [
        "enable.auto.commit",
        "enable.auto.offset.store",
        "enable.partition.eof",
        "auto.offset.reset",
        "partition.assignment.strategy",
        "group.protocol",
        "group.id",
        "bootstrap.servers",
        "session.timeout.ms",
    ] {
        let message = refusal(set(&[&format!("kafka.properties.{name}=x")]));
        assert!(
            message.contains(&format!("kafka.properties.{name} (flag --set kafka.properties.{name}): ")),
            "{message}"
        );
    }
}

#[test]
fn a_shorter_session_brings_its_deadlines_along() {
    let (config, provenance) = set(&["kafka.session_timeout_ms=1500"]).unwrap();
    assert_eq!((config.kafka.heartbeat_interval_ms, config.kafka.revoke_deadline_ms), (100, 500));
    assert_eq!(provenance.source("kafka.revoke_deadline_ms"), "default, from kafka.session_timeout_ms");

    let (config, _) = set(&["kafka.session_timeout_ms=1500", "kafka.revoke_deadline_ms=900"]).unwrap();
    assert_eq!(config.kafka.revoke_deadline_ms, 900);
    let (config, _) = set(&["kafka.session_timeout_ms=45000"]).unwrap();
    let default = Config::default();
    assert_eq!(config.kafka.heartbeat_interval_ms, default.kafka.heartbeat_interval_ms);
    assert_eq!(config.kafka.revoke_deadline_ms, default.kafka.revoke_deadline_ms);
}

#[test]
fn unknown_keys_are_refused_wherever_they_come_from() {
    let yaml = file("unknown", "kafka:\n  topc: x\n");
    let message = refusal(load(Some(&yaml), &[], &[]));
    assert!(
        message.contains(&format!("kafka.topc (file {}): is no key; this section has ", yaml.display())),
        "{message}"
    );

    let message = refusal(load(None, &[("FEED_WORKER_KAFKA__TOPC", "x")], &[]));
    assert!(
        message.contains("kafka.topc (environment variable FEED_WORKER_KAFKA__TOPC): is no key"),
        "{message}"
    );

    let message = refusal(set(&["kafak.topic=x"]));
    assert!(
        message.contains("kafak (flag --set kafak.topic): is no section; there are kafka, registry"),
        "{message}"
    );

    let message = refusal(set(&["kafka.topic.name=x"]));
    assert!(message.contains("kafka.topic (flag --set kafka.topic.name): "), "{message}");
}

#[test]
fn a_variable_with_one_underscore_too_few_is_refused_with_the_right_name() {
    let message = refusal(load(None, &[("FEED_WORKER_KAFKA_TOPIC", "x")], &[]));
    assert!(message.contains("FEED_WORKER_KAFKA_TOPIC (environment): "), "{message}");
    assert!(message.contains("FEED_WORKER_KAFKA__TOPIC"), "{message}");
}

#[test]
fn variables_of_a_kubernetes_service_and_empty_ones_are_passed_over() {
    let variables = [
        ("FEED_WORKER_SERVICE_HOST", "10.0.0.1"),
        ("FEED_WORKER_SERVICE_PORT", "8080"),
        ("FEED_WORKER_SERVICE_PORT_HTTP", "8080"),
        ("FEED_WORKER_PORT", "tcp://10.0.0.1:8080"),
        ("FEED_WORKER_PORT_8080_TCP_ADDR", "10.0.0.1"),
        ("FEED_WORKER_S3__REGION", ""),
    ];
    let (config, _) = load(None, &variables, &[]).unwrap();
    assert_eq!(config.s3.region, None);
}

#[test]
fn a_value_of_the_wrong_kind_is_named() {
    let message = refusal(load(None, &[("FEED_WORKER_BATCH__ROWS_MAX", "many")], &[]));
    assert!(
        message.contains("batch.rows_max (environment variable FEED_WORKER_BATCH__ROWS_MAX): found string \"many\", but it takes a whole number, 0 or more"),
        "{message}"
    );
    let message = refusal(set(&["batch.rows_max=-1"]));
    assert!(message.contains("batch.rows_max (flag --set batch.rows_max): "), "{message}");
    let message = refusal(set(&["health.addr=8080"]));
    assert!(message.contains("health.addr (flag --set health.addr): "), "{message}");
    let message = refusal(set(&["log.format=xml"]));
    assert!(
        message.contains("log.format (flag --set log.format): takes one of auto, json, human"),
        "{message}"
    );
    let message = refusal(set(&["kafka"]));
    assert!(message.contains("needs a key and a value"), "{message}");
}

#[test]
fn a_file_that_cannot_be_used_is_named() {
    let message = refusal(load(Some(Path::new("no/such.yaml")), &[], &[]));
    assert!(message.contains("file no/such.yaml") && message.contains("cannot be read"), "{message}");
    let twice = file("twice", "kafka:\n  topic: a\n  topic: b\n");
    assert!(refusal(load(Some(&twice), &[], &[])).contains("duplicate"));
    let list = file("list", "- kafka\n");
    assert!(refusal(load(Some(&list), &[], &[])).contains("must be a map of sections"));
    let empty = file("empty", "# nothing yet\nkafka:\n  # topic: x\nregistry:\n  username:\n");
    load(Some(&empty), &[], &[]).unwrap();
    let none = file("none", "");
    load(Some(&none), &[], &[]).unwrap();
}

#[test]
fn what_does_not_go_together_names_both_keys() {
    let cases: &[(&[&str], &[&str])] = &[
        (&["kafka.revoke_deadline_ms=45000"], &["kafka.revoke_deadline_ms", "kafka.session_timeout_ms"]),
        (
            &["kafka.assign_deadline_ms=300000", "kafka.silence_ms_max=600000"],
            &["kafka.assign_deadline_ms", "kafka.max_poll_interval_ms"],
        ),
        (&["kafka.silence_ms_max=10000"], &["kafka.assign_deadline_ms", "kafka.silence_ms_max"]),
        (
            &["kafka.heartbeat_interval_ms=15001"],
            &["kafka.heartbeat_interval_ms", "kafka.session_timeout_ms"],
        ),
        (&["kafka.session_timeout_ms=300001"], &["kafka.session_timeout_ms", "kafka.max_poll_interval_ms"]),
        (&["kafka.dlq_topic=feed.interactions.v1"], &["kafka.topic", "kafka.dlq_topic"]),
        (&["shutdown.deadline_ms=60000"], &["shutdown.deadline_ms", "shutdown.grace_ms"]),
        (&["postgres.deadline_ms=5000"], &["postgres.statement_timeout_ms", "postgres.deadline_ms"]),
        (&["health.stall_ms=10000"], &["postgres.deadline_ms", "health.stall_ms"]),
        (&["s3.connect_timeout_ms=30000"], &["s3.connect_timeout_ms", "s3.timeout_ms"]),
        (
            &["export.memory_bytes_max=100000000"],
            &["export.memory_bytes_max", "roll.bytes_max", "kafka.queued_kbytes_max"],
        ),
        (&["registry.password=x"], &["registry.password", "registry.username"]),
    ];
    for (sets, keys) in cases {
        let error = set(sets).expect_err(sets[0]);
        assert_eq!(error.problems.len(), 1, "{sets:?}: {error}");
        let named = &error.problems[0].keys;
        assert!(keys.iter().all(|key| named.iter().any(|named| named == key)), "{sets:?}: {error}");
    }
}

#[test]
fn what_makes_no_sense_is_refused() {
    for set_one in [
        "batch.rows_max=0",
        "batch.age_ms_max=0",
        "roll.rows_max=0",
        "roll.bytes_max=0",
        "roll.age_ms_max=0",
        "postgres.lanes=0",
        "postgres.lanes=17",
        "kafka.fetch_wait_ms_max=1000",
        "rejects.ratio_max=0",
        "rejects.ratio_max=1.01",
        "rejects.ratio_max=NaN",
        "rejects.window=3000000000",
        "interactions.weights=view",
        "interactions.weights=view:1,VIEW:2",
        "log.level=inof",
        "kafka.topic=feed/interactions",
        "kafka.group_id=",
        "s3.bucket=",
        "s3.prefix=/exports",
        "statsd.addr=localhost",
        "statsd.prefix=feed:worker",
        "registry.url=localhost:8081",
        "postgres.url=mysql://host/db",
    ] {
        let key = set_one.split('=').next().unwrap();
        let message = refusal(set(&[set_one]));
        assert!(message.contains(&format!("{key} (flag --set {key}): ")), "{set_one}: {message}");
    }
}

#[test]
fn everything_that_is_wrong_is_said_at_once() {
    let error = set(&["batch.rows_max=0", "roll.rows_max=0", "log.level=loud"]).unwrap_err();
    assert_eq!(error.problems.len(), 3, "{error}");
}

#[test]
fn a_worker_needs_its_three_addresses() {
    let (config, provenance) = set(&[]).unwrap();
    let error = config.require(&provenance).unwrap_err();
    let keys: Vec<_> = error.problems.iter().flat_map(|problem| &problem.keys).collect();
    assert_eq!(keys, ["kafka.bootstrap_servers", "registry.url", "postgres.url"]);
    let sets = ["kafka.bootstrap_servers=a:1", "registry.url=http://a:1", "postgres.url=postgres://a/b"];
    let (config, provenance) = set(&sets).unwrap();
    config.require(&provenance).unwrap();
}

#[test]
fn servers_and_placement_go_together() {
    // Three servers have six lanes, and each may hold a batch.
    let one = "postgres.url=postgres://u@a/feed";
    let memory = "export.memory_bytes_max=268435456";
    let more = "postgres.more_urls=postgres://u@b/feed, postgres://u@c/feed";
    let (config, _) = set(&[one, more, memory, "postgres.placement=12-23: 1, 30: 2"]).unwrap();
    assert_eq!(config.postgres.urls().count(), 3);
    assert_eq!([0, 12, 30, 31].map(|partition| config.postgres.placed().server_of(partition)), [0, 1, 2, 0]);
    for (sets, why) in [
        (vec![one, "postgres.placement=3: 1"], "there is no server 1"),
        (vec![one, more, "postgres.placement=3: 1, 4: 2, 5: 3"], "there is no server 3"),
        (vec![one, more, "postgres.placement=3: 1"], "no partition is on server 2"),
        (vec![one, more, "postgres.placement=3-5: 1, 5: 2"], "partition 5 is named twice"),
        (vec![one, more, "postgres.placement=3-: 1, 5: 2"], "is not partitions and a server"),
        (
            vec![one, "postgres.more_urls=postgres://other@a:5432/feed", "postgres.placement=3: 1"],
            "are the same",
        ),
        (
            vec![one, "postgres.more_urls=mysql://a/feed", "postgres.placement=3: 1"],
            "server 1 is no Postgres URL",
        ),
    ] {
        let told = refusal(set(&sets));
        assert!(told.contains(why) && told.contains("postgres."), "{sets:?}: {told}");
    }
}

fn with_secrets() -> (Config, Provenance) {
    let url = format!("postgres://feed:{PASSWORD}@db.internal:6432/feed?application_name=x");
    let sets = [
        format!("postgres.url={url}"),
        format!("postgres.more_urls=postgres://feed:{PASSWORD}@more.internal/feed"),
        "postgres.placement=1: 1".to_owned(),
        "registry.username=feed".to_owned(),
        format!("registry.password={PASSWORD}"),
        format!("kafka.properties.sasl.password={PASSWORD}"),
        format!("kafka.properties.ssl.key.pem={PASSWORD}"),
        format!("kafka.properties.sasl.oauthbearer.client.secret={PASSWORD}"),
        "kafka.properties.sasl.mechanism=PLAIN".to_owned(),
    ];
    set(&sets.each_ref().map(String::as_str)).unwrap()
}

#[test]
fn no_output_shows_a_secret() {
    let (config, provenance) = with_secrets();
    let yaml = config.dump(&provenance, Format::Yaml);
    let outputs = [
        yaml.clone(),
        config.dump(&provenance, Format::Json),
        format!("{config:?}"),
        format!("{provenance:?}"),
        config.postgres.url.to_string(),
        config.postgres.more_urls.to_string(),
        config.postgres.location(1),
        serde_json::to_string(&config).unwrap(),
    ];
    for output in outputs {
        assert!(!output.contains("hunter2"), "{output}");
    }
    assert!(yaml.contains("postgres://[redacted]@db.internal:6432/feed"), "{yaml}");
    assert!(yaml.contains("postgres://[redacted]@more.internal:5432/feed"), "{yaml}");
    assert!(yaml.contains(r#""sasl.mechanism": "PLAIN""#), "{yaml}");
}

#[test]
fn no_refusal_shows_a_secret() {
    let yaml = file("secrets", &format!("postgres: {{url: [{PASSWORD}]}}\n"));
    let digits = file("digits", "registry:\n  username: x\n  password: 8442\n");
    let refusals = [
        refusal(load(Some(&yaml), &[], &[])),
        refusal(load(Some(&digits), &[], &[])),
        refusal(set(&[&format!("postgres.url=postgres://u:{PASSWORD}@h:port/db")])),
        refusal(set(&[&format!(
            "postgres.more_urls=mysql://u:{PASSWORD}@h/db,postgres://u:{PASSWORD}@h:port/db"
        )])),
        refusal(set(&[&format!("registry.url=http://u:{PASSWORD}@h/")])),
        refusal(set(&[&format!("s3.endpoint=http://u:{PASSWORD}@h/")])),
        refusal(set(&[&format!("postgres.url:postgres://u:{PASSWORD}@h/db")])),
        refusal(load(None, &[("FEED_WORKER_POSTGRES_URL", PASSWORD)], &[])),
    ];
    for message in refusals {
        assert!(!message.contains("hunter2") && !message.contains("8442"), "{message}");
    }
}

#[test]
fn a_dump_says_where_each_value_came_from_and_loads_again() {
    let variables = [("FEED_WORKER_KAFKA__BOOTSTRAP_SERVERS", "a:1,b:2")];
    let (config, provenance) =
        load(None, &variables, &["batch.rows_max=7", "kafka.properties.a.b=c"]).unwrap();
    let yaml = config.dump(&provenance, Format::Yaml);
    let line = |start: &str| yaml.lines().find(|line| line.starts_with(start)).unwrap();
    assert!(line("  rows_max: 7").ends_with("# flag --set batch.rows_max"), "{yaml}");
    assert!(line("  topic: ").ends_with("# default"), "{yaml}");
    assert!(
        line("  bootstrap_servers: \"a:1,b:2\"")
            .ends_with("# environment variable FEED_WORKER_KAFKA__BOOTSTRAP_SERVERS")
    );

    let (again, _) = load(Some(&file("dumped", &yaml)), &[], &[]).unwrap();
    assert_eq!(format!("{again:?}"), format!("{config:?}"));

    let json: serde_json::Value = serde_json::from_str(&config.dump(&provenance, Format::Json)).unwrap();
    assert_eq!(json["values"]["batch"]["rows_max"], 7);
    assert_eq!(json["sources"]["batch.rows_max"], "flag --set batch.rows_max");
    let keys: usize = SECTIONS.iter().map(|section| section.keys.len()).sum();
    assert_eq!(json["sources"].as_object().unwrap().len(), keys);
}

/// The tables of docs/configuration.md, made from the code.
fn tables() -> String {
    let defaults = serde_json::to_value(Config::default()).unwrap();
    let mut text = String::new();
    for section in SECTIONS {
        writeln!(text, "\n## {}\n\n{}\n", section.name, section.about.trim()).unwrap();
        writeln!(text, "| key | default | meaning |\n|---|---|---|").unwrap();
        for key in section.keys {
            let name = key.path.strip_prefix(section.name).unwrap().trim_start_matches('.');
            let default = match &defaults[section.name][name] {
                serde_json::Value::String(text) if !text.is_empty() => format!("`{text}`"),
                serde_json::Value::String(_) | serde_json::Value::Null | serde_json::Value::Object(_) => {
                    "–".to_owned()
                }
                value => format!("`{value}`"),
            };
            let about = key.about.trim().replace('|', "\\|");
            writeln!(text, "| `{}` | {default} | {about} |", key.path).unwrap();
        }
    }
    text
}

/// What the chart sets itself: its other values decide it.
const SET_BY_THE_CHART: [&str; 3] = ["shutdown.grace_ms", "statsd.addr", "statsd.enabled"];

/// The part of the chart's schema that says what its `config` takes, made from the code. Secrets are no part of it:
/// a ConfigMap is no place for them.
fn chart_schema() -> serde_json::Value {
    let mut sections = serde_json::Map::new();
    for section in SECTIONS {
        let mut keys = serde_json::Map::new();
        for key in section.keys.iter().filter(|key| !SET_BY_THE_CHART.contains(&key.path)) {
            let name = key.path.strip_prefix(section.name).unwrap().trim_start_matches('.');
            if let Some(schema) = value_schema(key.kind) {
                keys.insert(name.to_owned(), schema);
            }
        }
        if !keys.is_empty() {
            let schema = json!({"type": "object", "additionalProperties": false, "properties": keys});
            sections.insert(section.name.to_owned(), schema);
        }
    }
    json!({"type": "object", "additionalProperties": false, "properties": sections})
}

fn value_schema(kind: &str) -> Option<serde_json::Value> {
    Some(match kind {
        "Secret" | "Option<Secret>" => return None,
        "u16" | "u32" | "u64" | "usize" | "Option<u64>" => json!({"type": "integer", "minimum": 0}),
        "f64" => json!({"type": "number"}),
        "bool" => json!({"type": "boolean"}),
        // Names that `Properties` takes for secrets.
        "Properties" => json!({
            "type": "object",
            "propertyNames": {"not": {"pattern": "password|secret|token|credential|jaas|assertion|oauthbearer\\.config|\\.pem"}},
            "additionalProperties": {"type": "string"},
        }),
        // Text, addresses, and words of which the program says itself what they may be.
        _ => json!({"type": "string"}),
    })
}

/// Run with `UPDATE_DOCS=1` to write it anew.
#[test]
fn the_charts_schema_has_every_key() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("helm/feed-worker/values.schema.json");
    let mut schema: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        schema["properties"]["config"] = chart_schema();
        std::fs::write(&path, format!("{schema:#}\n")).unwrap();
    } else {
        assert!(
            schema["properties"]["config"] == chart_schema(),
            "{} is out of date: UPDATE_DOCS=1 cargo test --test config",
            path.display()
        );
    }
}

/// Run with `UPDATE_DOCS=1` to write the tables anew.
#[test]
fn the_documentation_has_every_key() {
    const MARK: &str = "<!-- From here on written by `UPDATE_DOCS=1 cargo test --test config`. -->\n";
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/configuration.md");
    let page = std::fs::read_to_string(&path).unwrap();
    let (introduction, found) = page.split_once(MARK).expect("the page has the mark");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, format!("{introduction}{MARK}{}", tables())).unwrap();
    } else {
        assert!(
            found == tables(),
            "docs/configuration.md is out of date: UPDATE_DOCS=1 cargo test --test config"
        );
    }
}
