//! The transaction of each server. Every lock is taken, and every server looked at, before anything is decided; nothing
//! is committed before all of it is done, home's transaction last. docs/adr/0005 says what a crash in between leaves.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Context;

use super::{Tx, refused};
use crate::command::Failure;
use crate::command::ledger::{connect, log_action};
use crate::config::Config;
use crate::export::manifest::{FileEntry, GapEntry};
use crate::placement::Placement;
use crate::postgres::reconcile::{self, PartitionStand, TopicStand};
use crate::postgres::{days, places};

/// How long a server's transaction may lie still before it is touched. Longer comes near the ten minutes after which
/// Postgres ends it, while another server's objects are loaded; shorter asks more often than it needs.
const STILL_MAX: Duration = Duration::from_secs(60);

/// The servers' transactions, by their numbers.
pub(super) struct Servers {
    held: Vec<Tx>,
    placement: Placement,
    locations: Vec<String>,
    topic: String,
    touched: Instant,
}

/// What stood in the ledgers when the locks were taken.
pub(super) struct Stand {
    /// The topic's days. Home's, for it alone says which are closed.
    pub topic: TopicStand,
    /// The last day, by server, after which a partition that is new there begins. Never before home's closed day.
    pub closed: Vec<i32>,
    /// In the order of their numbers.
    pub partitions: Vec<PartitionStand>,
    /// What home says of partitions that are on other servers.
    pub entered: BTreeMap<i32, String>,
}

impl Stand {
    pub fn partition(&self, number: i32) -> Option<&PartitionStand> {
        self.partitions.iter().find(|stand| stand.partition == number)
    }

    /// The first day that one of them has not closed, or that is not finished.
    pub fn first_day(&self) -> i32 {
        let closed = self.partitions.iter().map(|p| p.closed_day).min().unwrap_or(self.topic.closed_day);
        closed.min(self.topic.closed_day).min(self.topic.success_day) + 1
    }
}

impl Servers {
    /// Takes every row of the ledgers, and refuses where somebody else may still write to one of them.
    pub async fn lock(config: &Config) -> Result<(Self, Stand), Failure> {
        let mut held = Vec::new();
        for server in 0..config.postgres.urls().count() {
            let tx = reconcile::begin(config, server).await;
            held.push(
                tx.with_context(|| format!("connecting to postgres ({})", config.postgres.called(server)))?,
            );
        }
        let mut servers = Servers {
            locations: (0..held.len()).map(|server| config.postgres.location(server)).collect(),
            held,
            placement: config.postgres.placed(),
            topic: config.kafka.topic.clone(),
            touched: Instant::now(),
        };
        // Two numbers that mean one database would wait for each other's locks.
        servers.refuse_misplaced().await?;
        let stand = servers.lock_rows().await?;
        servers.refuse_misplaced().await?;
        if !servers.are_several() {
            crate::command::refuse_elsewhere(&mut *servers.held[0], &servers.topic, "ledger reconcile")
                .await?;
        }
        for server in 0..servers.held.len() {
            let found = super::sign_of_life(&mut servers.held[server], config).await?;
            if let Some(why) = found {
                return Err(refused(servers.said_of(server, &why)));
            }
        }
        Ok((servers, stand))
    }

    pub fn are_several(&self) -> bool {
        self.held.len() > 1
    }

    pub fn server_of(&self, partition: i32) -> usize {
        // A number that no server has is refused with the configuration.
        Some(self.placement.server_of(partition)).filter(|server| *server < self.held.len()).unwrap_or(0)
    }

    /// Which server, where there are several.
    pub fn number_of(&self, partition: i32) -> Option<usize> {
        self.are_several().then(|| self.server_of(partition))
    }

    /// The transaction of a partition's server.
    pub fn of(&mut self, partition: i32) -> &mut Tx {
        let server = self.server_of(partition);
        &mut self.held[server]
    }

    pub fn name(&self, server: usize) -> String {
        format!("{server} ({})", self.locations[server])
    }

    /// What home says, or is to say, of a partition on a server.
    pub fn entry(&self, server: usize) -> String {
        places::entry(server, &self.locations[server])
    }

    fn said_of(&self, server: usize, why: &str) -> String {
        if self.are_several() {
            return format!("Postgres server {}: {why}", self.name(server));
        }
        why.to_owned()
    }

    /// Every row must be on its partition's server, and home's entries must name it.
    async fn refuse_misplaced(&mut self) -> Result<(), Failure> {
        if !self.are_several() {
            return Ok(());
        }
        let mut found = Vec::new();
        for tx in &mut self.held {
            found.push(places::places(&mut **tx, &self.topic).await.context("reading the ledger")?);
        }
        let mut on = BTreeMap::new();
        for (server, places) in found.iter().enumerate() {
            for (partition, place) in places {
                if !place.is_empty() && server > 0 {
                    return Err(refused(format!(
                        "the ledger of Postgres server {} says that partition {partition} is on server {place}: it is \
                         server 0's or a copy of it; postgres.url and postgres.more_urls must name the servers as before",
                        self.name(server)
                    )));
                }
                let Some(other) = place.is_empty().then(|| on.insert(*partition, server)).flatten() else {
                    continue;
                };
                return Err(refused(format!(
                    "partition {partition} has a ledger row on server {} and on server {}: either both are one database (see \
                     postgres.more_urls), or one of the rows was begun by somebody who was configured otherwise, when \
                     the other server was restored. Nothing is done before one of them is deleted: under one whose epoch \
                     is 0 nothing was consumed",
                    self.name(other),
                    self.name(server)
                )));
            }
        }
        let locations: Vec<&str> = self.locations.iter().map(String::as_str).collect();
        for (server, places) in found.iter().enumerate() {
            if let Some(why) = places::misplaced(places, server, &self.placement, &locations) {
                return Err(refused(why));
            }
        }
        Ok(())
    }

    /// Takes the rows in the order in which whoever closes a day takes them: the others' first, home's last.
    async fn lock_rows(&mut self) -> Result<Stand, Failure> {
        let reading = "reading the ledger";
        let at_home = match self.are_several() {
            true => reconcile::topic_of(&mut self.held[0], &self.topic).await.context(reading)?,
            false => None,
        };
        let mut stand = Stand {
            topic: TopicStand { closed_day: 0, success_day: 0 },
            closed: vec![0; self.held.len()],
            partitions: Vec::new(),
            entered: BTreeMap::new(),
        };
        for server in (1..self.held.len()).chain([0]) {
            let tx = &mut self.held[server];
            if let Some((cluster_id, group_id, closed_day)) = at_home.as_ref().filter(|_| server > 0) {
                // A server that was restored may not have the topic yet, or know fewer of its days.
                places::raise_topic(&mut **tx, (&self.topic, cluster_id, group_id), *closed_day)
                    .await
                    .context("entering the topic")?;
                let here = reconcile::topic_of(tx, &self.topic).await.context(reading)?;
                if here.is_none_or(|(cluster, group, _)| (&cluster, &group) != (cluster_id, group_id)) {
                    return Err(refused(format!(
                        "the ledger of Postgres server {} belongs to another cluster or group than that of server 0: \
                         postgres.more_urls names another job's server",
                        self.name(server)
                    )));
                }
            }
            let topic = reconcile::lock_topic(tx, &self.topic).await.context(reading)?;
            let Some(topic) = topic else { return Err(self.no_topic()) };
            stand.closed[server] = topic.closed_day;
            // In the end home's, which comes last.
            stand.topic = topic;
            let found = reconcile::lock_partitions(tx, &self.topic).await.context(reading)?;
            let is_elsewhere = |p: &PartitionStand| p.stopped.as_deref() == Some(places::ELSEWHERE);
            stand.partitions.extend(found.into_iter().filter(|p| !is_elsewhere(p)));
        }
        stand.partitions.sort_by_key(|p| p.partition);
        stand.entered = places::places(&mut *self.held[0], &self.topic).await.context(reading)?;
        stand.entered.retain(|_, place| !place.is_empty());
        Ok(stand)
    }

    fn no_topic(&self) -> Failure {
        let what_to_do = match self.are_several() {
            true => {
                "; start one worker with every server configured until its partitions are stopped, stop it, and run this again"
            }
            false => "",
        };
        refused(format!(
            "the ledger has no topic {}: this database never was its ledger, or its backup is older \
             than the topic's first record; there is nothing that the bucket could be compared with{what_to_do}",
            self.topic
        ))
    }

    /// Shows every server that its transaction goes on.
    pub async fn touch(&mut self) -> Result<(), Failure> {
        if !self.are_several() || self.touched.elapsed() < STILL_MAX {
            return Ok(());
        }
        for (server, tx) in self.held.iter_mut().enumerate() {
            let touched = sqlx::query("SELECT 1").execute(&mut **tx).await;
            touched.with_context(|| format!("Postgres server {server} ({})", self.locations[server]))?;
        }
        self.touched = Instant::now();
        Ok(())
    }

    /// The files of the days from one to another, by server.
    pub async fn files(&mut self, from: i32, to: i32) -> Result<Vec<Vec<FileEntry>>, Failure> {
        let mut all = Vec::new();
        for tx in &mut self.held {
            let found = days::files(&mut **tx, &self.topic, from, to).await;
            all.push(found.context("reading the ledger's files")?);
        }
        Ok(all)
    }

    pub async fn gaps(&mut self, day: i32) -> Result<Vec<GapEntry>, Failure> {
        let mut all = Vec::new();
        for tx in &mut self.held {
            all.extend(reconcile::gaps(tx, &self.topic, day).await.context("reading the ledger's gaps")?);
        }
        Ok(all)
    }

    /// Moves the topic's days forwards. Other servers keep the closed day only, for partitions that begin there.
    pub async fn move_topic(&mut self, days: &TopicStand) -> Result<(), Failure> {
        for (server, tx) in self.held.iter_mut().enumerate() {
            let days = match server {
                0 => *days,
                _ => TopicStand { success_day: 0, ..*days },
            };
            reconcile::move_topic(tx, &self.topic, &days).await.context("moving the topic's days")?;
        }
        Ok(())
    }

    /// Gives everything up.
    pub async fn rollback(self) -> Result<(), Failure> {
        for tx in self.held {
            tx.rollback().await.context("giving the transaction up")?;
        }
        Ok(())
    }

    /// Writes down what an operator did: all of it at home, and on each other server what was changed there.
    pub async fn log(
        &mut self,
        reason: &str,
        detail: serde_json::Value,
        by_server: BTreeMap<usize, serde_json::Value>,
    ) -> Result<(), Failure> {
        for (server, detail) in by_server.into_iter().filter(|(server, _)| *server > 0) {
            log_action(&mut self.held[server], "ledger reconcile", reason, detail).await?;
        }
        log_action(&mut self.held[0], "ledger reconcile", reason, detail).await
    }

    /// Enters at home, in a transaction that is committed at once, where partitions are: before one of them has a row
    /// there. It needs the locks that are held here, and does not wait for them.
    pub async fn enter(&self, config: &Config, missing: &BTreeMap<usize, Vec<i32>>) -> Result<(), Failure> {
        if missing.is_empty() {
            return Ok(());
        }
        let mut tx = connect(config, 0).await?;
        for (server, partitions) in missing {
            let entry = self.entry(*server);
            let entered = places::insert_entries(&mut *tx, &self.topic, partitions, &entry, reconcile::OWNER)
                .await
                .context("entering where partitions are")?;
            if entered != partitions.len() as u64 {
                return Err(refused(format!(
                    "some of the partitions {partitions:?} have come to be on server 0 meanwhile: nothing was done"
                )));
            }
        }
        Ok(tx.commit().await.context("entering where partitions are")?)
    }

    /// Home's last: its row alone says that a day is closed, and no other server may be behind it then.
    pub async fn commit(mut self) -> Result<(), Failure> {
        let several = self.are_several();
        let others = self.held.split_off(1);
        for (server, tx) in (1..).zip(others).chain((0..).zip(self.held)) {
            tx.commit().await.with_context(|| match several {
                true => format!(
                    "committing what was reconciled on Postgres server {server} ({}); run this again, it finds what is left",
                    self.locations[server]
                ),
                false => "committing what was reconciled".to_owned(),
            })?;
        }
        Ok(())
    }
}
