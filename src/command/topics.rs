//! `feed-worker topics apply`: the topics of `topics.yaml`, in the cluster.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::metadata::{Metadata, MetadataTopic};
use rdkafka::types::RDKafkaErrorCode;

use crate::command::ClientContext;
use crate::topics::{Contract, Topic};

/// The topics of the contract in the cluster.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Create the topics that are missing, and check those that are there.
    ///
    /// A topic that is there is never changed: where it differs from the contract, every difference
    /// is listed and the command fails.
    Apply {
        #[arg(long, default_value = "topics.yaml", value_name = "FILE")]
        file: PathBuf,
        /// Which overrides of the contract count; without it the contract as it is written.
        #[arg(long, value_name = "NAME")]
        environment: Option<String>,
        /// Use another name for a topic of the contract; can be repeated.
        #[arg(long, value_name = "NAME=OTHER", value_parser = parse_override)]
        topic_override: Vec<(String, String)>,
    },
}

const TIMEOUT: Duration = Duration::from_secs(15);
/// How long a new topic may take until each partition has a leader.
const LEADER_TIMEOUT: Duration = Duration::from_secs(30);

type Admin = AdminClient<DefaultClientContext>;

pub async fn run(args: Args, cx: &ClientContext) -> anyhow::Result<()> {
    let Action::Apply { file, environment, topic_override } = args.action;
    let topics = Contract::read(&file)?.topics(environment.as_deref())?;
    let topics = rename(topics, &topic_override)?;
    let admin: Admin = cx.kafka.create().context("starting the Kafka admin client")?;
    let known = fetch_metadata(&admin)?;
    let (present, missing): (Vec<_>, Vec<_>) =
        topics.iter().partition(|topic| find(&known, &topic.name).is_some());
    let mut to_check = present;
    if !missing.is_empty() {
        to_check.extend(create(&admin, &missing).await?);
        wait_for_leaders(&admin, &missing).await?;
    }
    let differences = compare_all(&admin, &to_check).await?;
    if differences.is_empty() {
        return Ok(());
    }
    for difference in &differences {
        eprintln!("differs: {difference}");
    }
    bail!(
        "{} differences between {} and the cluster; nothing that was there has been changed",
        differences.len(),
        file.display()
    )
}

/// Creates each topic. Answers with those that somebody else created at the same time.
async fn create<'t>(admin: &Admin, missing: &[&'t Topic]) -> anyhow::Result<Vec<&'t Topic>> {
    let wanted: Vec<NewTopic<'_>> = missing
        .iter()
        .map(|topic| {
            let replication = TopicReplication::Fixed(topic.replication);
            let new = NewTopic::new(&topic.name, topic.partitions, replication);
            topic.config.iter().fold(new, |new, (key, setting)| new.set(key, &setting.0))
        })
        .collect();
    let options = AdminOptions::new().operation_timeout(Some(TIMEOUT));
    let results = admin.create_topics(&wanted, &options).await.context("creating topics")?;
    let mut elsewhere = Vec::new();
    let mut refused = Vec::new();
    for (topic, result) in missing.iter().zip(results) {
        match result {
            Ok(_) => println!(
                "created {}: {} partitions, replication {}",
                topic.name, topic.partitions, topic.replication
            ),
            Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => elsewhere.push(*topic),
            Err((name, error)) => refused.push(format!("{name}: {error}")),
        }
    }
    ensure!(
        refused.is_empty(),
        "the broker refused to create {} (is the --environment right?)",
        refused.join("; ")
    );
    Ok(elsewhere)
}

/// So that whoever comes next can produce at once.
async fn wait_for_leaders(admin: &Admin, created: &[&Topic]) -> anyhow::Result<()> {
    let deadline = Instant::now() + LEADER_TIMEOUT;
    loop {
        let metadata = fetch_metadata(admin)?;
        let has_leaders = |topic: &&&Topic| {
            find(&metadata, &topic.name).is_some_and(|found| {
                found.partitions().len() >= topic.partitions as usize
                    && found.partitions().iter().all(|partition| partition.leader() >= 0)
            })
        };
        let Some(without) = created.iter().find(|topic| !has_leaders(topic)) else {
            return Ok(());
        };
        ensure!(
            Instant::now() < deadline,
            "topic {} was created, but not every partition has a leader after {LEADER_TIMEOUT:?}",
            without.name
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn compare_all(admin: &Admin, topics: &[&Topic]) -> anyhow::Result<Vec<String>> {
    let metadata = fetch_metadata(admin)?;
    let mut differences = Vec::new();
    for topic in topics {
        let found = find(&metadata, &topic.name);
        let found = found.with_context(|| format!("topic {} has just gone", topic.name))?;
        let before = differences.len();
        compare_shape(topic, found, &mut differences);
        compare_settings(admin, topic, &mut differences).await?;
        if differences.len() == before {
            println!("{} is as it should be", topic.name);
        }
    }
    Ok(differences)
}

fn compare_shape(topic: &Topic, found: &MetadataTopic, differences: &mut Vec<String>) {
    let name = &topic.name;
    let partitions = found.partitions().len();
    if partitions != topic.partitions as usize {
        differences.push(format!("{name}: {partitions} partitions, not {}", topic.partitions));
    }
    let other = |replicas: &usize| *replicas != topic.replication as usize;
    let replicas = found.partitions().iter().map(|partition| partition.replicas().len());
    if let Some(replicas) = replicas.into_iter().find(other) {
        differences.push(format!("{name}: replication {replicas}, not {}", topic.replication));
    }
}

async fn compare_settings(admin: &Admin, topic: &Topic, differences: &mut Vec<String>) -> anyhow::Result<()> {
    let name = &topic.name;
    let options = AdminOptions::new().request_timeout(Some(TIMEOUT));
    let described = admin
        .describe_configs(&[ResourceSpecifier::Topic(name)], &options)
        .await
        .with_context(|| format!("asking for the configuration of topic {name}"))?;
    for resource in described {
        let resource = resource
            .with_context(|| format!("the broker does not show the configuration of topic {name}"))?;
        for (key, wanted) in &topic.config {
            match resource.get(key).and_then(|entry| entry.value.as_deref()) {
                Some(value) if value == wanted.0 => {}
                Some(value) => differences.push(format!("{name}: {key}={value}, not {}", wanted.0)),
                None => differences.push(format!("{name}: the broker knows no {key}")),
            }
        }
    }
    Ok(())
}

/// Of all topics: asking for one by name could create it.
fn fetch_metadata(admin: &Admin) -> anyhow::Result<Metadata> {
    admin
        .inner()
        .fetch_metadata(None, TIMEOUT)
        .context("asking the broker which topics there are: is it reachable?")
}

fn find<'m>(metadata: &'m Metadata, name: &str) -> Option<&'m MetadataTopic> {
    metadata.topics().iter().find(|topic| topic.name() == name && topic.error().is_none())
}

fn rename(mut topics: Vec<Topic>, overrides: &[(String, String)]) -> anyhow::Result<Vec<Topic>> {
    for (name, other) in overrides {
        let topic = topics.iter_mut().find(|topic| topic.name == *name);
        let topic = topic.with_context(|| format!("--topic-override: there is no topic {name}"))?;
        topic.name.clone_from(other);
    }
    Ok(topics)
}

fn parse_override(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, other)) if !name.is_empty() && !other.is_empty() => {
            Ok((name.to_owned(), other.to_owned()))
        }
        _ => Err("must be NAME=OTHER".to_owned()),
    }
}
