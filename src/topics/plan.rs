//! The difference between the contract and a cluster, and what may be done about it.
//!
//! Pure: no I/O. What this module guarantees: a change that loses records, or that Kafka cannot do, is never
//! among those that are made without being asked for.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::{Setting, Topic};

/// A topic as the cluster has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    /// Number of replicas, by partition.
    pub replicas: Vec<usize>,
    pub settings: BTreeMap<String, Found>,
}

/// A setting as the cluster has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    pub value: Option<String>,
    /// Set on the topic itself. Otherwise it is a default of the broker, or of Kafka.
    pub is_own: bool,
}

/// One difference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    Create,
    /// More partitions: keys move.
    Raise {
        have: usize,
        want: usize,
    },
    Set {
        key: String,
        have: Option<String>,
        want: String,
    },
    /// Fewer partitions, which Kafka does not know.
    Shrink {
        have: usize,
        want: usize,
    },
    Replication {
        have: usize,
        want: usize,
    },
    /// The contract names a setting that the broker does not have.
    Unknown {
        key: String,
    },
    /// A setting that somebody set and the contract does not name.
    Foreign {
        key: String,
        value: String,
    },
}

/// What may be done about a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    Possible,
    /// Only when it is asked for: why it cannot be undone.
    Irreversible(&'static str),
    /// Never by this program: what to do instead.
    Refused(&'static str),
    /// Stays as it is.
    Kept,
}

/// One topic of the contract, and how the cluster differs from it.
#[derive(Debug, Clone, PartialEq)]
pub struct TopicPlan {
    pub topic: Topic,
    pub changes: Vec<Change>,
}

impl TopicPlan {
    /// `observed` is None when the cluster has no such topic.
    pub fn new(topic: Topic, observed: Option<&Observed>) -> Self {
        let changes = match observed {
            None => vec![Change::Create],
            Some(observed) => compare(&topic, observed),
        };
        Self { topic, changes }
    }

    /// The differences that `apply` is about: what is kept is none.
    pub fn differences(&self) -> impl Iterator<Item = &Change> {
        self.changes.iter().filter(|change| change.verdict() != Verdict::Kept)
    }

    pub fn wants(&self, change: &Change) -> bool {
        self.changes.contains(change)
    }

    /// For people: a heading, and a line for each change.
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        if self.differences().next().is_none() {
            let _ = writeln!(text, "{} is as it should be", self.topic.name);
        } else {
            let _ = writeln!(text, "{}", self.topic.name);
        }
        for change in &self.changes {
            let _ = writeln!(text, "  {}", change.line());
            if *change == Change::Create {
                let topic = &self.topic;
                let _ = writeln!(
                    text,
                    "      {} partitions, replication {}",
                    topic.partitions, topic.replication
                );
                for (key, Setting(value)) in &topic.config.0 {
                    let _ = writeln!(text, "      {key} = {}", with_unit(key, value));
                }
            }
        }
        text
    }

    /// For a log: one line for each difference, what is kept included.
    pub fn drift(&self) -> Vec<String> {
        let name = &self.topic.name;
        self.changes
            .iter()
            .map(|change| match change {
                Change::Create => format!("{name}: the topic is missing"),
                Change::Raise { have, want } | Change::Shrink { have, want } => {
                    format!("{name}: partitions is {have}, not {want}")
                }
                Change::Replication { have, want } => format!("{name}: replication is {have}, not {want}"),
                Change::Set { key, have, want } => {
                    format!("{name}: {key} is {}, not {want}", have.as_deref().unwrap_or("unset"))
                }
                Change::Unknown { key } => format!("{name}: the broker knows no {key}"),
                Change::Foreign { key, value } => {
                    format!("{name}: {key} is set to {value}, and the contract does not name it")
                }
            })
            .collect()
    }
}

impl Change {
    pub fn verdict(&self) -> Verdict {
        match self {
            Self::Create => Verdict::Possible,
            Self::Raise { .. } => Verdict::Irreversible(
                "keys move to other partitions, and what a user did before and after is no longer in one order",
            ),
            Self::Set { key, have, want } => match loses_records(key, have.as_deref(), want) {
                Some(why) => Verdict::Irreversible(why),
                None => Verdict::Possible,
            },
            Self::Shrink { .. } => Verdict::Refused(
                "Kafka cannot take partitions away: correct the contract, or make a topic of another name and move producers and consumers",
            ),
            Self::Replication { .. } => Verdict::Refused(
                "replicas are moved by kafka-reassign-partitions.sh (--generate, --execute, --verify), at a pace that the cluster can bear",
            ),
            Self::Unknown { .. } => Verdict::Refused("correct the contract, or the brokers' version"),
            Self::Foreign { .. } => Verdict::Kept,
        }
    }

    fn line(&self) -> String {
        let arrow = |key: &str, have: &str, want: &str| format!("{key:<24} {have} -> {want}");
        let what = match self {
            Self::Create => "missing: create it".to_owned(),
            Self::Raise { have, want } | Self::Shrink { have, want } => {
                arrow("partitions", &have.to_string(), &want.to_string())
            }
            Self::Replication { have, want } => arrow("replication", &have.to_string(), &want.to_string()),
            Self::Set { key, have, want } => {
                let have = have.as_deref().map_or_else(|| "unset".to_owned(), |have| with_unit(key, have));
                arrow(key, &have, &with_unit(key, want))
            }
            Self::Unknown { key } => format!("{key:<24} the broker knows no such setting"),
            Self::Foreign { key, value } => {
                format!("{key:<24} {} (kept: not in the contract)", with_unit(key, value))
            }
        };
        match (self, self.verdict()) {
            (Self::Create, _) => format!("+ {what}"),
            (_, Verdict::Possible) => format!("~ {what}"),
            (_, Verdict::Irreversible(why)) => format!("~ {what}\n      cannot be undone: {why}"),
            (_, Verdict::Refused(instead)) => format!("! {what}\n      refused: {instead}"),
            (_, Verdict::Kept) => format!("= {what}"),
        }
    }
}

fn compare(topic: &Topic, observed: &Observed) -> Vec<Change> {
    let mut changes = Vec::new();
    let (have, want) = (observed.replicas.len(), topic.partitions as usize);
    if have < want {
        changes.push(Change::Raise { have, want });
    } else if have > want {
        changes.push(Change::Shrink { have, want });
    }
    let want = topic.replication as usize;
    if let Some(have) = observed.replicas.iter().copied().find(|have| *have != want) {
        changes.push(Change::Replication { have, want });
    }
    for (key, Setting(want)) in &topic.config.0 {
        match observed.settings.get(key) {
            None => changes.push(Change::Unknown { key: key.clone() }),
            Some(found) if found.value.as_deref() == Some(want) => {}
            Some(found) => {
                changes.push(Change::Set { key: key.clone(), have: found.value.clone(), want: want.clone() });
            }
        }
    }
    for (key, found) in &observed.settings {
        if found.is_own && !topic.config.0.contains_key(key) {
            let value = found.value.clone().unwrap_or_default();
            changes.push(Change::Foreign { key: key.clone(), value });
        }
    }
    changes
}

/// Why the change of a setting makes the broker delete what it holds.
fn loses_records(key: &str, have: Option<&str>, want: &str) -> Option<&'static str> {
    match key {
        "retention.ms" | "retention.bytes" => {
            let limit = |text: &str| text.parse().ok().filter(|limit: &i64| *limit >= 0).unwrap_or(i64::MAX);
            let is_shorter = limit(want) < have.map_or(i64::MAX, limit);
            is_shorter.then_some("what is older or more than that is deleted at once")
        }
        "cleanup.policy" => Some("another policy deletes records that the one before kept"),
        "unclean.leader.election.enable" if want == "true" => {
            Some("a broker that lags behind may become leader, and what it lacks is lost")
        }
        "remote.storage.enable" if want == "false" => Some("what lies in the remote storage is deleted"),
        _ => None,
    }
}

/// Durations with their length in words.
fn with_unit(key: &str, value: &str) -> String {
    const UNITS: [(i64, &str); 4] = [(86_400_000, "d"), (3_600_000, "h"), (60_000, "min"), (1000, "s")];
    let ms = value.parse::<i64>().ok().filter(|ms| key.ends_with(".ms") && *ms > 0);
    let unit =
        ms.and_then(|ms| UNITS.iter().find(|(unit, _)| ms % unit == 0).map(|(unit, name)| (ms / unit, name)));
    match unit {
        Some((count, name)) => format!("{value} ({count} {name})"),
        None => value.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topics::Contract;

    fn contract() -> Topic {
        let committed = Contract::parse(include_str!("../../topics.yaml")).unwrap();
        committed.topics(None).unwrap().swap_remove(0)
    }

    fn found(value: &str, is_own: bool) -> Found {
        Found { value: Some(value.to_owned()), is_own }
    }

    /// What a cluster that was just brought into line has.
    fn in_line(topic: &Topic) -> Observed {
        let mut settings: BTreeMap<_, _> =
            topic.config.0.iter().map(|(key, Setting(value))| (key.clone(), found(value, true))).collect();
        settings.insert("compression.type".to_owned(), found("producer", false));
        Observed { replicas: vec![topic.replication as usize; topic.partitions as usize], settings }
    }

    fn plan(change: impl FnOnce(&mut Observed)) -> TopicPlan {
        let mut observed = in_line(&contract());
        change(&mut observed);
        TopicPlan::new(contract(), Some(&observed))
    }

    #[test]
    fn what_is_in_line_has_no_changes() {
        let plan = plan(|_| {});
        assert_eq!(plan.changes, []);
        assert_eq!(plan.text(), "feed.interactions.v1 is as it should be\n");
        assert!(plan.drift().is_empty());
    }

    #[test]
    fn a_missing_topic_is_created_as_the_contract_has_it() {
        let plan = TopicPlan::new(contract(), None);
        assert_eq!(plan.changes, [Change::Create]);
        let text = plan.text();
        for part in ["+ missing", "6 partitions, replication 3", "retention.ms = 604800000 (7 d)"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert_eq!(plan.drift(), ["feed.interactions.v1: the topic is missing"]);
    }

    #[test]
    fn every_difference_has_its_verdict() {
        let set = |key: &'static str, value: &'static str| {
            move |observed: &mut Observed| {
                observed.settings.insert(key.to_owned(), found(value, true));
            }
        };
        type Case = (Box<dyn FnOnce(&mut Observed)>, Verdict, &'static str);
        let is = |verdict: &Verdict, wanted: &Verdict| {
            std::mem::discriminant(verdict) == std::mem::discriminant(wanted)
        };
        let (possible, irreversible) = (Verdict::Possible, Verdict::Irreversible(""));
        let refused = Verdict::Refused("");
        let cases: Vec<Case> = vec![
            (Box::new(|o| o.replicas.truncate(4)), irreversible.clone(), "partitions is 4, not 6"),
            (Box::new(|o| o.replicas.push(3)), refused.clone(), "partitions is 7, not 6"),
            (Box::new(|o| o.replicas[5] = 2), refused.clone(), "replication is 2, not 3"),
            (
                Box::new(set("retention.ms", "3600000")),
                possible.clone(),
                "retention.ms is 3600000, not 604800000",
            ),
            (Box::new(set("retention.ms", "-1")), irreversible.clone(), "retention.ms is -1, not"),
            (Box::new(set("cleanup.policy", "compact")), irreversible, "cleanup.policy is compact"),
            (Box::new(set("min.insync.replicas", "1")), possible, "min.insync.replicas is 1, not 2"),
            (Box::new(set("compression.type", "lz4")), Verdict::Kept, "compression.type is set to lz4"),
            (
                Box::new(|o| {
                    o.settings.remove("min.insync.replicas");
                }),
                refused,
                "knows no min.insync.replicas",
            ),
        ];
        for (change, verdict, line) in cases {
            let plan = plan(change);
            assert_eq!(plan.changes.len(), 1, "{line}: {:?}", plan.changes);
            assert!(is(&plan.changes[0].verdict(), &verdict), "{line}: {:?}", plan.changes[0].verdict());
            assert!(plan.drift()[0].contains(line), "{line}: {:?}", plan.drift());
        }
    }

    #[test]
    fn what_the_contract_does_not_name_is_drift_but_nothing_to_apply() {
        let plan = plan(|observed| {
            observed.settings.insert("segment.ms".to_owned(), found("60000", true));
        });
        assert_eq!(plan.differences().count(), 0);
        assert!(plan.text().contains("as it should be\n  = segment.ms"), "{}", plan.text());
        assert_eq!(plan.drift().len(), 1);
    }
}
