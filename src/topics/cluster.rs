//! The topics of a cluster: seen, created, widened, set.
//!
//! What this module guarantees: nothing is ever made smaller or deleted, and no setting of a topic is lost. The
//! client has only the older of the two calls that change settings, which takes back whatever it does not name;
//! so what stands on the topic is read just before, sent along, and compared with what stands there afterwards.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rdkafka::ClientConfig;
use rdkafka::admin::{
    AdminClient, AdminOptions, AlterConfig, ConfigEntry, ConfigSource, NewPartitions, NewTopic,
    ResourceSpecifier, TopicReplication,
};
use rdkafka::metadata::{Metadata, MetadataTopic};
use rdkafka::types::RDKafkaErrorCode;

use super::plan::{Change, Found, Observed, TopicPlan};
use super::{Setting, Topic};
use crate::kafka::Quiet;
use crate::kafka::security::wants_tokens;

const TIMEOUT: Duration = Duration::from_secs(15);
/// How long what was changed may take until every broker tells it. Larger: a change that did not take is told
/// later. Smaller: a busy cluster looks as if it had not obeyed.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(20);
const POLL_DISTANCE: Duration = Duration::from_millis(100);

pub struct Cluster {
    admin: AdminClient<Quiet>,
}

impl Cluster {
    pub fn connect(config: &ClientConfig) -> anyhow::Result<Self> {
        // It would wait for ever: the library polls an admin client for answers only, never for a token.
        ensure!(
            !wants_tokens(config),
            "topics cannot be administered with tokens: with kafka.auth=msk_iam or token_file use Kafka's own \
             kafka-topics.sh and kafka-configs.sh, or run this command with a certificate or scram (docs/security.md)"
        );
        let admin =
            config.create_with_context(Quiet::default()).context("starting the Kafka admin client")?;
        Ok(Self { admin })
    }

    /// Each topic of the contract beside what the cluster has.
    pub async fn plan(&self, topics: &[Topic]) -> anyhow::Result<Vec<TopicPlan>> {
        let metadata = self.metadata()?;
        let mut plans = Vec::with_capacity(topics.len());
        for topic in topics {
            let observed = match find(&metadata, &topic.name)? {
                None => None,
                Some(found) => Some(Observed {
                    replicas: found.partitions().iter().map(|partition| partition.replicas().len()).collect(),
                    settings: self.settings(&topic.name).await?,
                }),
            };
            plans.push(TopicPlan::new(topic.clone(), observed.as_ref()));
        }
        Ok(plans)
    }

    /// Makes the changes, then waits until the cluster tells that they are made. The caller has seen to it that
    /// nothing refused is among them. Answers with what differs all the same.
    pub async fn apply(&self, plans: &[TopicPlan]) -> anyhow::Result<Vec<TopicPlan>> {
        for plan in plans {
            self.validate(&plan.topic).await?;
        }
        for plan in plans {
            if plan.wants(&Change::Create) {
                self.create(&plan.topic).await?;
            }
            // Partitions last: they cannot be taken away again if something before them fails.
            self.set(plan).await?;
            for change in plan.differences() {
                if let Change::Raise { want, .. } = change {
                    self.raise(&plan.topic.name, *want).await?;
                }
            }
        }
        self.settle(plans).await
    }

    /// Finds a value that the broker refuses before anything is changed. The client does not tell what the broker
    /// says to a change of settings, only what it says to a new topic: so it is asked whether one with these
    /// settings could be made.
    async fn validate(&self, topic: &Topic) -> anyhow::Result<()> {
        let name = format!("{}.settings-check", topic.name);
        let new = NewTopic::new(&name, topic.partitions, TopicReplication::Fixed(topic.replication));
        let new = topic.config.0.iter().fold(new, |new, (key, Setting(value))| new.set(key, value));
        let options = AdminOptions::new().operation_timeout(Some(TIMEOUT)).validate_only(true);
        let results = self.admin.create_topics(&[new], &options).await;
        for result in
            results.with_context(|| format!("having the settings of topic {} checked", topic.name))?
        {
            if let Err((_, error @ (RDKafkaErrorCode::InvalidConfig | RDKafkaErrorCode::PolicyViolation))) =
                result
            {
                bail!(
                    "nothing was changed: the broker refuses the settings of topic {}: {error}",
                    topic.name
                );
            }
        }
        Ok(())
    }

    async fn create(&self, topic: &Topic) -> anyhow::Result<()> {
        let new = NewTopic::new(&topic.name, topic.partitions, TopicReplication::Fixed(topic.replication));
        let new = topic.config.0.iter().fold(new, |new, (key, Setting(value))| new.set(key, value));
        let options = AdminOptions::new().operation_timeout(Some(TIMEOUT));
        let results = self.admin.create_topics(&[new], &options).await;
        let results = results.with_context(|| format!("creating topic {}", topic.name))?;
        match results.into_iter().next() {
            // Somebody else was faster; what they made is compared with the contract at the end.
            Some(Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists))) => Ok(()),
            Some(Err((name, error))) => {
                bail!("the broker refused to create {name}: {error} (is the --environment right?)")
            }
            None => bail!("the broker did not say what became of topic {}", topic.name),
        }
    }

    async fn raise(&self, topic: &str, want: usize) -> anyhow::Result<()> {
        let options = AdminOptions::new().operation_timeout(Some(TIMEOUT));
        let results = self.admin.create_partitions(&[NewPartitions::new(topic, want)], &options).await;
        let results = results.with_context(|| format!("adding partitions to topic {topic}"))?;
        for result in results {
            result.map_err(|(name, error)| {
                anyhow::anyhow!("the broker refused {want} partitions of {name}: {error}")
            })?;
        }
        Ok(())
    }

    /// Sends what the plan sets, together with every setting that stands on the topic now.
    async fn set(&self, plan: &TopicPlan) -> anyhow::Result<()> {
        let name = &plan.topic.name;
        let wanted: BTreeMap<&str, &str> = plan
            .differences()
            .filter_map(|change| match change {
                Change::Set { key, want, .. } => Some((key.as_str(), want.as_str())),
                _ => None,
            })
            .collect();
        if wanted.is_empty() {
            return Ok(());
        }
        let before = self.settings(name).await?;
        let mut entries = BTreeMap::new();
        for (key, found) in before.iter().filter(|(_, found)| found.is_own) {
            let value = found.value.as_deref();
            let value = value.with_context(|| {
                format!("topic {name}: {key} is set but the broker does not show it, and it would be lost: set the others with kafka-configs.sh")
            })?;
            let has_changed = !plan.topic.config.0.contains_key(key)
                && !plan.wants(&Change::Foreign { key: key.clone(), value: value.to_owned() });
            ensure!(
                !has_changed,
                "topic {name}: somebody has just set {key}={value}; look at the plan again"
            );
            entries.insert(key.as_str(), value);
        }
        // Of the contract, all: a default of the broker that happens to be right may change.
        entries
            .extend(plan.topic.config.0.iter().map(|(key, Setting(value))| (key.as_str(), value.as_str())));
        entries.extend(wanted);
        let mut alter = AlterConfig::new(ResourceSpecifier::Topic(name));
        alter.entries.extend(entries);
        let options = AdminOptions::new().request_timeout(Some(TIMEOUT));
        let results = self.admin.alter_configs(&[alter], &options).await;
        // The results say "done" whatever the broker answered; `settle` looks.
        results.with_context(|| format!("setting the configuration of topic {name}"))?;
        Ok(())
    }

    /// Waits until the cluster shows what was planned, every partition with a leader. Answers with how it differs
    /// when the time is over: somebody else has changed it too.
    async fn settle(&self, planned: &[TopicPlan]) -> anyhow::Result<Vec<TopicPlan>> {
        let topics: Vec<Topic> = planned.iter().map(|plan| plan.topic.clone()).collect();
        let deadline = Instant::now() + SETTLE_TIMEOUT;
        loop {
            let now = self.plan(&topics).await?;
            let mut is_done = self.all_have_leaders(&topics)?;
            for (now, planned) in now.iter().zip(planned) {
                let foreign = |plan: &TopicPlan| -> Vec<Change> {
                    let is_foreign = |change: &&Change| matches!(change, Change::Foreign { .. });
                    plan.changes.iter().filter(is_foreign).cloned().collect()
                };
                is_done &= now.differences().next().is_none() && foreign(now) == foreign(planned);
            }
            if is_done {
                return Ok(Vec::new());
            }
            if Instant::now() > deadline {
                return Ok(now);
            }
            tokio::time::sleep(POLL_DISTANCE).await;
        }
    }

    fn all_have_leaders(&self, topics: &[Topic]) -> anyhow::Result<bool> {
        let metadata = self.metadata()?;
        for topic in topics {
            let found = find(&metadata, &topic.name)?;
            let has_leaders = found.is_some_and(|found| {
                found.partitions().len() >= topic.partitions as usize
                    && found.partitions().iter().all(|partition| partition.leader() >= 0)
            });
            if !has_leaders {
                return Ok(false);
            }
        }
        Ok(true)
    }

    async fn settings(&self, topic: &str) -> anyhow::Result<BTreeMap<String, Found>> {
        let options = AdminOptions::new().request_timeout(Some(TIMEOUT));
        let described = self
            .admin
            .describe_configs(&[ResourceSpecifier::Topic(topic)], &options)
            .await
            .with_context(|| format!("asking for the configuration of topic {topic}"))?;
        let resource = described.into_iter().next().context("the broker shows no configuration")?;
        let resource = resource
            .with_context(|| format!("the broker does not show the configuration of topic {topic}"))?;
        // The client does not tell the broker's error either.
        ensure!(
            !resource.entries.is_empty(),
            "the broker does not show the configuration of topic {topic}: this user needs DescribeConfigs on it"
        );
        let found = |entry: ConfigEntry| {
            let is_own = entry.source == ConfigSource::DynamicTopic;
            (entry.name, Found { value: entry.value, is_own })
        };
        Ok(resource.entries.into_iter().map(found).collect())
    }

    /// Of all topics: asking for one by name could create it.
    fn metadata(&self) -> anyhow::Result<Metadata> {
        self.admin
            .inner()
            .fetch_metadata(None, TIMEOUT)
            .context("asking the broker which topics there are: is it reachable?")
    }
}

fn find<'m>(metadata: &'m Metadata, name: &str) -> anyhow::Result<Option<&'m MetadataTopic>> {
    let Some(found) = metadata.topics().iter().find(|topic| topic.name() == name) else {
        return Ok(None);
    };
    match found.error().map(RDKafkaErrorCode::from) {
        None => Ok(Some(found)),
        Some(RDKafkaErrorCode::UnknownTopicOrPartition) => Ok(None),
        Some(error) => bail!("the broker says of topic {name}: {error}"),
    }
}
