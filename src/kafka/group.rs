//! What the brokers say of the group and of the topic's retention. Bytes that the members wrote are read with care:
//! whatever is not understood is nobody's partition.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, ensure};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, ResourceSpecifier};
use rdkafka::consumer::Consumer;
use rdkafka::error::KafkaError;

use super::security::wants_tokens;
use super::{Quiet, probe};

/// Partitions of the topic that no member of the group has; none while the group rebalances, when what the broker
/// shows is half an assignment. Blocks.
pub fn unowned(
    config: &ClientConfig,
    topic: &str,
    group: &str,
    timeout: Duration,
) -> Result<Option<Vec<i32>>, KafkaError> {
    let consumer = probe::connect(config)?;
    let partitions = probe::partitions_by(&consumer, topic, timeout)?;
    let list = consumer.fetch_group_list(Some(group), timeout)?;
    let Some(found) = list.groups().iter().find(|found| found.name() == group) else {
        return Ok(None);
    };
    if !matches!(found.state(), "Stable" | "Empty" | "Dead") {
        return Ok(None);
    }
    let owned: BTreeSet<i32> = found
        .members()
        .iter()
        .filter_map(|member| member.assignment())
        .flat_map(|bytes| assigned(bytes, topic).unwrap_or_default())
        .collect();
    Ok(Some(partitions.into_iter().filter(|partition| !owned.contains(partition)).collect()))
}

/// The partitions of a topic in a member's assignment, as the consumer protocol writes it:
/// version, then topics, each with its partitions; none: it is not written so.
fn assigned(bytes: &[u8], topic: &str) -> Option<Vec<i32>> {
    let mut rest = bytes;
    take(&mut rest, 2)?;
    let topics = number(&mut rest)?;
    let mut found = Vec::new();
    for _ in 0..topics {
        let length = i16::from_be_bytes(take(&mut rest, 2)?.try_into().ok()?);
        let name = take(&mut rest, usize::try_from(length).ok()?)?;
        let count = number(&mut rest)?;
        for _ in 0..count {
            let partition = number(&mut rest)?;
            if name == topic.as_bytes() {
                found.push(partition);
            }
        }
    }
    Some(found)
}

fn number(rest: &mut &[u8]) -> Option<i32> {
    Some(i32::from_be_bytes(take(rest, 4)?.try_into().ok()?))
}

fn take<'a>(rest: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
    let (taken, left) = rest.split_at_checked(count)?;
    *rest = left;
    Some(taken)
}

/// `retention.ms` of the topic; none: for ever. An error may mean that this user may not see it (DescribeConfigs).
pub async fn retention_ms(
    config: &ClientConfig,
    topic: &str,
    timeout: Duration,
) -> anyhow::Result<Option<u64>> {
    ensure!(
        !wants_tokens(config),
        "with kafka.auth=msk_iam or token_file the brokers cannot be asked for it: set kafka.retention_ms"
    );
    Ok(u64::try_from(topic_setting(config, topic, "retention.ms", timeout).await?).ok())
}

/// `max.message.bytes` of the topic: what one batch may take, compressed. An error may mean that this user may not see it
/// (DescribeConfigs), or that this client cannot ask.
pub async fn batch_bytes_max(config: &ClientConfig, topic: &str, timeout: Duration) -> anyhow::Result<u64> {
    Ok(topic_setting(config, topic, "max.message.bytes", timeout).await?.try_into()?)
}

async fn topic_setting(
    config: &ClientConfig,
    topic: &str,
    name: &str,
    timeout: Duration,
) -> anyhow::Result<i64> {
    // It would wait in vain: the library polls an admin client for answers only, never for a token.
    ensure!(
        !wants_tokens(config),
        "with kafka.auth=msk_iam or token_file the brokers cannot be asked for it"
    );
    let admin: AdminClient<Quiet> =
        config.create_with_context(Quiet::default()).context("starting the admin client")?;
    let options = AdminOptions::new().request_timeout(Some(timeout));
    let described = admin.describe_configs(&[ResourceSpecifier::Topic(topic)], &options).await?;
    let resource = described.into_iter().next().context("the broker shows no configuration")??;
    let entry = resource.entries.into_iter().find(|entry| entry.name == name);
    let value = entry.and_then(|entry| entry.value).with_context(|| {
        format!("the broker does not show {name} of the topic: this user needs DescribeConfigs on it")
    })?;
    value.parse().with_context(|| format!("{name} is {value}"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn written(topics: &[(&str, &[i32])]) -> Vec<u8> {
        let mut bytes = vec![0, 1];
        bytes.extend((topics.len() as i32).to_be_bytes());
        for (name, partitions) in topics {
            bytes.extend((name.len() as i16).to_be_bytes());
            bytes.extend(name.as_bytes());
            bytes.extend((partitions.len() as i32).to_be_bytes());
            bytes.extend(partitions.iter().flat_map(|partition| partition.to_be_bytes()));
        }
        bytes.extend([0xff; 4]); // no user data
        bytes
    }

    #[test]
    fn one_topic_among_others() {
        let bytes = written(&[("other", &[1, 2]), ("feed", &[0, 7]), ("third", &[])]);
        assert_eq!(assigned(&bytes, "feed"), Some(vec![0, 7]));
        assert_eq!(assigned(&bytes, "none"), Some(vec![]));
    }

    proptest! {
        #[test]
        fn whatever_is_cut_off_is_not_understood(partitions in proptest::collection::vec(0..100_i32, 0..20), cut in 5..200_usize) {
            let whole = written(&[("feed", &partitions)]);
            prop_assert_eq!(assigned(&whole, "feed"), Some(partitions.clone()));
            let cut = whole.len().saturating_sub(cut);
            prop_assert_eq!(assigned(&whole[..cut], "feed"), None);
        }

        #[test]
        fn no_bytes_do_harm(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = assigned(&bytes, "feed");
        }
    }
}
