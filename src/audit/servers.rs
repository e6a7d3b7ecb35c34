//! Several Postgres servers as the audit sees them: their ledgers as one.
//!
//! 1. A partition has its ledger row, its rows and its files on one server. What is on a second one is a finding.
//! 2. The first server names the server of every partition that it does not have itself. One that was not opened is
//!    refused: what lies there would be called lost.

use std::collections::BTreeMap;

use super::Trouble;
use super::table::{Ledger, Snapshot};

/// What one server has of a topic.
pub struct OfServer {
    pub found: Snapshot,
    /// Partitions of which it says where else they are: the number of the server, and its address then.
    pub elsewhere: Vec<(i32, String)>,
}

/// One ledger out of all, and which server has a partition's row.
pub fn merge(topic: &str, servers: Vec<OfServer>) -> Result<(Snapshot, BTreeMap<i32, usize>), Trouble> {
    let count = servers.len();
    let (mut all, mut server_of, mut named) = (Snapshot::default(), BTreeMap::new(), BTreeMap::new());
    let mut strays = Vec::new();
    for (number, OfServer { found, elsewhere }) in servers.into_iter().enumerate() {
        if number == 0 {
            (all.topic, all.today) = (found.topic, found.today);
        }
        for (partition, ledger) in found.partitions {
            if let Some(other) = server_of.insert(partition, number) {
                all.misplaced
                    .push(format!("{topic}/{partition}: a ledger row on server {other} and on {number}"));
            }
            take(&mut all, partition, ledger);
        }
        for (partition, place) in elsewhere {
            let server = place.split(' ').next().and_then(|server| server.parse::<usize>().ok());
            match server.filter(|server| *server < count) {
                Some(server) if number == 0 => drop(named.insert(partition, server)),
                Some(_) => {
                    all.misplaced
                        .push(format!("{topic}/{partition}: server {number} says that it is on {place}"));
                }
                None => {
                    let text = format!(
                        "partition {partition} is on Postgres server {place}, which the configuration does not have: \
                         nothing was compared"
                    );
                    return Err(Trouble::Refused(text));
                }
            }
        }
        all.gaps.extend(found.gaps);
        strays.extend(found.strays.into_iter().map(|partition| (partition, number)));
        all.first_day = [all.first_day, found.first_day].into_iter().flatten().min();
        all.rows_filed += found.rows_filed;
    }
    for (partition, number) in strays {
        match server_of.get(&partition) {
            Some(server) => all.misplaced.push(format!(
                "{topic}/{partition}: rows or files on server {number}, its ledger row on {server}"
            )),
            None if all.strays.contains(&partition) => {}
            None => all.strays.push(partition),
        }
    }
    for (partition, server) in &server_of {
        if *server != named.get(partition).copied().unwrap_or(0) {
            all.misplaced
                .push(format!("{topic}/{partition}: on server {server}, which the first one does not say"));
        }
    }
    all.gaps.sort_by_key(|gap| (gap.partition, gap.from_offset));
    Ok((all, server_of))
}

/// Of two rows of one partition the one that is further: what lies below it must be somewhere.
fn take(all: &mut Snapshot, partition: i32, ledger: Ledger) {
    let known = all.partitions.entry(partition).or_insert_with(|| ledger.clone());
    if known.persist_frontier < ledger.persist_frontier {
        *known = ledger;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(partitions: &[i32], elsewhere: &[(i32, &str)], strays: &[i32]) -> OfServer {
        let ledger = Ledger {
            epoch: 1,
            persist_frontier: 0,
            export_frontier: 0,
            persist_day: 1,
            closed_day: 0,
            first_day: 0,
            rows_above: 0,
            first_above: None,
            files_end: None,
        };
        let found = Snapshot {
            partitions: partitions.iter().map(|partition| (*partition, ledger.clone())).collect(),
            strays: strays.to_vec(),
            ..Snapshot::default()
        };
        let elsewhere = elsewhere.iter().map(|(partition, place)| (*partition, (*place).to_owned()));
        OfServer { found, elsewhere: elsewhere.collect() }
    }

    fn misplaced(servers: Vec<OfServer>) -> Vec<String> {
        merge("t", servers).unwrap_or_else(|_| panic!("refused")).0.misplaced
    }

    #[test]
    fn each_partition_is_on_the_server_that_the_first_names() {
        let two = vec![server(&[0, 1], &[(2, "1 b:5432/x")], &[]), server(&[2], &[], &[])];
        let (all, server_of) = merge("t", two).unwrap_or_else(|_| panic!("refused"));
        assert!(all.misplaced.is_empty() && all.strays.is_empty());
        assert_eq!(all.partitions.keys().collect::<Vec<_>>(), [&0, &1, &2]);
        assert_eq!(server_of, BTreeMap::from([(0, 0), (1, 0), (2, 1)]));
    }

    #[test]
    fn what_is_on_two_servers_is_told() {
        let twice = vec![server(&[0, 1], &[], &[]), server(&[1], &[], &[])];
        assert_eq!(misplaced(twice).len(), 2, "and the first does not say that it is on the second");
        let rows = vec![server(&[0], &[(1, "1 b")], &[]), server(&[1], &[], &[0])];
        assert_eq!(misplaced(rows), ["t/0: rows or files on server 1, its ledger row on 0"]);
        let unsaid = vec![server(&[0], &[], &[]), server(&[1], &[], &[])];
        assert_eq!(misplaced(unsaid), ["t/1: on server 1, which the first one does not say"]);
    }

    #[test]
    fn a_server_that_was_not_opened_is_refused() {
        assert!(matches!(merge("t", vec![server(&[0], &[(1, "1 b")], &[])]), Err(Trouble::Refused(_))));
    }
}
