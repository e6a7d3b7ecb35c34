//! Which partition is on which Postgres server.
//!
//! 1. Every partition is on exactly one server: what the configuration does not name is on server 0.
//! 2. It is said explicitly, never computed from how many servers there are: adding one moves nothing.

use std::collections::BTreeSet;

/// A range of partitions and its server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Range {
    first: i32,
    last: i32,
    server: usize,
}

impl Range {
    fn has(&self, partition: i32) -> bool {
        (self.first..=self.last).contains(&partition)
    }

    /// How many of its partitions are below one.
    fn below(&self, partition: i32) -> i32 {
        (partition.min(self.last.saturating_add(1)) - self.first).max(0)
    }
}

/// Where partitions are. The default: all on server 0.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Placement(Vec<Range>);

impl Placement {
    /// Reads `12-23: 1, 30: 2`. The error says what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut ranges = Vec::new();
        for entry in text.split(',').map(str::trim).filter(|entry| !entry.is_empty()) {
            let range =
                parse_range(entry).ok_or_else(|| format!("`{entry}` is not partitions and a server"))?;
            if range.last < range.first {
                return Err(format!("`{entry}` ends before it begins"));
            }
            if range.server == 0 {
                return Err(format!("`{entry}` is needless: what is not named is on server 0"));
            }
            ranges.push(range);
        }
        ranges.sort_unstable();
        if let Some(pair) = ranges.windows(2).find(|pair| pair[0].last >= pair[1].first) {
            return Err(format!("partition {} is named twice", pair[1].first));
        }
        Ok(Placement(ranges))
    }

    pub fn server_of(&self, partition: i32) -> usize {
        self.0.iter().find(|range| range.has(partition)).map_or(0, |range| range.server)
    }

    /// The servers that are named.
    pub fn servers(&self) -> impl Iterator<Item = usize> {
        let named: BTreeSet<usize> = self.0.iter().map(|range| range.server).collect();
        named.into_iter()
    }

    /// The lane that a partition always uses, when each server has so many: a server's lanes follow those of the one
    /// before. Its partitions take turns, whatever their numbers are.
    pub fn lane_of(&self, partition: i32, lanes: usize) -> usize {
        let server = self.server_of(partition);
        let of_server: i32 =
            self.0.iter().filter(|range| range.server == server).map(|range| range.below(partition)).sum();
        let rank = match server {
            0 => partition - self.0.iter().map(|range| range.below(partition)).sum::<i32>(),
            _ => of_server,
        };
        server * lanes + rank.unsigned_abs() as usize % lanes.max(1)
    }
}

fn parse_range(entry: &str) -> Option<Range> {
    let (partitions, server) = entry.split_once(':')?;
    let number = |text: &str| text.trim().parse::<i32>().ok().filter(|number| *number >= 0);
    let (first, last) = match partitions.split_once('-') {
        Some((first, last)) => (number(first)?, number(last)?),
        None => (number(partitions)?, number(partitions)?),
    };
    Some(Range { first, last, server: server.trim().parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_named_is_on_the_first_server() {
        let placement = Placement::parse(" 12-23: 1,30:2 , 3 : 1").unwrap();
        let servers: Vec<usize> = [0, 3, 11, 12, 23, 24, 30, 31].map(|p| placement.server_of(p)).to_vec();
        assert_eq!(servers, [0, 1, 0, 1, 1, 0, 2, 0]);
        assert_eq!(placement.servers().collect::<Vec<_>>(), [1, 2]);
        assert_eq!(Placement::parse("").unwrap(), Placement::default());
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for text in
            ["3", "3:", ":1", "a: 1", "3-: 1", "-3: 1", "3: x", "5-3: 1", "3: 0", "3-5: 1, 5: 2", "3: -1"]
        {
            assert!(Placement::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_lane_is_of_one_server_and_partitions_take_turns() {
        let placement = Placement::parse("1: 1, 3: 1, 5: 1").unwrap();
        let lanes: Vec<usize> = (0..6).map(|p| placement.lane_of(p, 2)).collect();
        assert_eq!(lanes, [0, 2, 1, 3, 0, 2]);
        let one: Vec<usize> = (0..4).map(|p| Placement::default().lane_of(p, 3)).collect();
        assert_eq!(one, [0, 1, 2, 0]);
    }
}
