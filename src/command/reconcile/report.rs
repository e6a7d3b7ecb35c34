//! What was done, for whoever ran the command and for whoever asks later.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::begin::Begun;
use super::servers::Servers;
use crate::row::day_text;

/// What was done to a partition.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub(super) struct Moved {
    pub partition: i32,
    /// Its server, where there are several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server: Option<usize>,
    pub files: usize,
    pub rows: u64,
    pub rows_added: u64,
    pub export_frontier: (i64, i64),
    pub persist_frontier: (i64, i64),
    pub closed_day: String,
    pub released: bool,
}

/// All that was done, or would be.
pub(super) struct Done {
    topic: String,
    several: bool,
    moved: Vec<Moved>,
    /// Partitions of which only their place is known, with their servers.
    empty: BTreeMap<i32, usize>,
    /// Partitions that home learns to be elsewhere, by server.
    pub entered: BTreeMap<usize, Vec<i32>>,
    /// Names of the servers of those.
    names: BTreeMap<usize, String>,
    closed_day: i32,
    success_day: i32,
}

impl Done {
    pub fn new(
        servers: &Servers,
        topic: &str,
        moved: Vec<Moved>,
        begun: Begun,
        (closed_day, success_day): (i32, i32),
    ) -> Self {
        let empty: BTreeMap<i32, usize> = begun.empty.iter().map(|p| (*p, servers.server_of(*p))).collect();
        let numbers = begun.missing.keys().chain(empty.values());
        Done {
            topic: topic.to_owned(),
            several: servers.are_several(),
            moved,
            names: numbers.map(|server| (*server, servers.name(*server))).collect(),
            empty,
            entered: begun.missing,
            closed_day,
            success_day,
        }
    }

    /// The days apart.
    pub fn is_nothing(&self) -> bool {
        self.moved.is_empty() && self.empty.is_empty() && self.entered.is_empty()
    }

    /// All of it, as it is written down at home.
    pub fn detail(&self) -> Value {
        let mut detail = json!({
            "topic": self.topic, "partitions": self.moved,
            "closed_day": day_text(self.closed_day), "success_day": day_text(self.success_day),
        });
        if self.several {
            detail["begun"] = json!(self.empty.keys().collect::<Vec<_>>());
            detail["entered_elsewhere"] = json!(self.entered.values().flatten().collect::<Vec<_>>());
        }
        detail
    }

    /// What is written down on each server of its own.
    pub fn by_server(&self) -> BTreeMap<usize, Value> {
        let servers = self.moved.iter().filter_map(|moved| moved.server).chain(self.empty.values().copied());
        let of = |server: usize| {
            let moved: Vec<&Moved> = self.moved.iter().filter(|m| m.server == Some(server)).collect();
            let begun: Vec<i32> = self.empty.iter().filter(|(_, s)| **s == server).map(|(p, _)| *p).collect();
            json!({ "topic": self.topic, "server": server, "partitions": moved, "begun": begun })
        };
        servers.map(|server| (server, of(server))).collect()
    }

    pub fn tell(&self) {
        for (server, partitions) in &self.entered {
            for partition in partitions {
                println!(
                    "partition {partition}: entered on server 0 as being on server {}",
                    self.names[server]
                );
            }
        }
        for (partition, server) in &self.empty {
            println!(
                "partition {partition}: server {} has no row of it, and the bucket no file; it begins at offset 0",
                self.names[server]
            );
        }
        for m in &self.moved {
            println!(
                "partition {}{}: {} files with {} rows entered, {} of them loaded into the table; \
                 exported {} → {}, persisted {} → {}, closed up to {}{}",
                m.partition,
                m.server.map(|server| format!(" (server {server})")).unwrap_or_default(),
                m.files,
                m.rows,
                m.rows_added,
                m.export_frontier.0,
                m.export_frontier.1,
                m.persist_frontier.0,
                m.persist_frontier.1,
                m.closed_day,
                if m.released { "; no longer stopped" } else { "" },
            );
        }
        println!(
            "{}: closed up to {}, finished up to {}; workers go on from Kafka at the persist frontiers",
            self.topic,
            day_text(self.closed_day),
            day_text(self.success_day)
        );
    }
}
