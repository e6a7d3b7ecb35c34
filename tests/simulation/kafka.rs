//! The topic, its group, and what stands in for the poll thread of a worker.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::time::Duration;

use feed_worker::kafka::probe::Found;
use feed_worker::kafka::rebalance::Candidate;
use feed_worker::kafka::source::{Command, PollEnd, SourceEvent, Start};
use feed_worker::outside::{Broker, BrokerFuture};
use feed_worker::record::Chunk;
use rand::Rng;
use rand::seq::SliceRandom;
use rdkafka::message::Timestamp;
use tokio::time::{Instant, sleep};

use crate::world::{Me, Service, Shared, World, of};

pub const SESSION_TIMEOUT: Duration = Duration::from_millis(1_500);
pub const ASSIGN_DEADLINE: Duration = Duration::from_millis(4_000);
pub const REVOKE_DEADLINE: Duration = Duration::from_millis(500);
/// Bytes handed over and not yet decoded.
const OUTSTANDING_MAX: usize = 4_000;

/// What a record is, and so where it has to end up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Good,
    /// Its letter goes to the DLQ.
    Bad,
    /// The worker accepts it, the database does not.
    Refused,
    /// An offset without a record: the marker of a transaction.
    Marker,
}

#[derive(Clone, Debug)]
pub struct Entry {
    pub kind: Kind,
    pub timestamp_ms: i64,
    pub value: Vec<u8>,
}

struct Member {
    incarnation: u64,
    seen: Instant,
}

pub struct Kafka {
    pub log: BTreeMap<i32, Vec<Entry>>,
    pub committed: BTreeMap<i32, i64>,
    members: BTreeMap<usize, Member>,
    /// Who has a partition, and who is to have it.
    owned: BTreeMap<i32, (usize, u64)>,
    target: BTreeMap<i32, usize>,
    /// Workers whose client is about to meet something that it cannot read.
    pub unreadable: BTreeSet<usize>,
    /// Nothing is produced before.
    pub idle_until: Option<Instant>,
}

impl Kafka {
    pub fn new(partitions: i32) -> Self {
        Kafka {
            log: (0..partitions).map(|p| (p, Vec::new())).collect(),
            committed: BTreeMap::new(),
            members: BTreeMap::new(),
            owned: BTreeMap::new(),
            target: BTreeMap::new(),
            unreadable: BTreeSet::new(),
            idle_until: None,
        }
    }

    pub fn high(&self, partition: i32) -> i64 {
        self.log.get(&partition).map_or(0, |log| log.len() as i64)
    }

    /// The offset of the last record; below zero: there is none.
    fn last(&self, partition: i32) -> i64 {
        let log = self.log.get(&partition).map_or(&[][..], Vec::as_slice);
        log.iter().rposition(|entry| entry.kind != Kind::Marker).map_or(-1, |offset| offset as i64)
    }

    /// The first record at or after an offset.
    fn at(&self, partition: i32, offset: i64) -> Option<(i64, &Entry)> {
        let log = self.log.get(&partition)?;
        let from = usize::try_from(offset).unwrap_or(0);
        let found = log.iter().enumerate().skip(from).find(|(_, entry)| entry.kind != Kind::Marker);
        found.map(|(offset, entry)| (offset as i64, entry))
    }
}

impl World {
    /// Deals the partitions to the members that there are; most stay where they are.
    pub fn rebalance(&mut self) {
        let members: Vec<usize> = self.kafka.members.keys().copied().collect();
        if members.is_empty() {
            self.kafka.target.clear();
            return;
        }
        let partitions: Vec<i32> = self.kafka.log.keys().copied().collect();
        for partition in partitions {
            let stays = self.kafka.target.get(&partition).is_some_and(|slot| members.contains(slot));
            if !stays || self.rng.random_bool(0.4) {
                let slot = members[self.rng.random_range(0..members.len())];
                self.kafka.target.insert(partition, slot);
            }
        }
        self.count("rebalance");
    }

    /// Members that were silent for too long are put out.
    fn put_out(&mut self) {
        let now = Instant::now();
        let silent: Vec<usize> = self
            .kafka
            .members
            .iter()
            .filter(|(_, member)| now - member.seen > SESSION_TIMEOUT)
            .map(|(slot, _)| *slot)
            .collect();
        for slot in silent {
            self.count("member put out");
            self.leave(slot);
        }
    }

    fn leave(&mut self, slot: usize) {
        if self.kafka.members.remove(&slot).is_some() {
            self.kafka.owned.retain(|_, (owner, _)| *owner != slot);
            self.told(|| format!("{slot} is out of the group"));
            self.rebalance();
        }
    }

    fn is_member(&self, slot: usize, incarnation: u64) -> bool {
        self.kafka.members.get(&slot).is_some_and(|m| m.incarnation == incarnation)
    }

    fn owned_by(&self, slot: usize, incarnation: u64) -> Vec<i32> {
        self.kafka.owned.iter().filter(|(_, o)| **o == (slot, incarnation)).map(|(p, _)| *p).collect()
    }
}

/// The poll thread of one life of one worker.
pub struct Poller {
    pub me: Me,
    pub end: PollEnd,
    assignment: u64,
    /// Where each assigned partition is read next.
    positions: BTreeMap<i32, i64>,
    held: BTreeSet<i32>,
    stopped: BTreeSet<i32>,
}

impl Poller {
    pub fn new(me: Me, end: PollEnd) -> Self {
        Poller {
            me,
            end,
            assignment: 0,
            positions: BTreeMap::new(),
            held: BTreeSet::new(),
            stopped: BTreeSet::new(),
        }
    }

    /// Polls until the pipeline is gone or says so.
    pub async fn run(mut self) {
        self.join();
        loop {
            self.me.gate().await;
            if !self.obey().await {
                of(&self.me.world).leave(self.me.slot);
                return;
            }
            self.meet_group().await;
            if !self.brokers_away() {
                self.fetch();
            }
            let pause_ms = of(&self.me.world).rng.random_range(20..80);
            sleep(Duration::from_millis(pause_ms)).await;
        }
    }

    fn brokers_away(&self) -> bool {
        let world = of(&self.me.world);
        world.away.get(&Service::Brokers).is_some_and(|(until, _)| *until > Instant::now())
    }

    fn join(&self) {
        let mut world = of(&self.me.world);
        let (slot, incarnation) = (self.me.slot, self.me.incarnation);
        world.leave(slot);
        world.kafka.members.insert(slot, Member { incarnation, seen: Instant::now() });
        world.told(|| format!("{slot} joins"));
        world.rebalance();
    }

    /// Serves commands; false when it has to end.
    async fn obey(&mut self) -> bool {
        loop {
            match self.end.commands.try_recv() {
                Ok(Command::Hold(partition, true)) => drop(self.held.insert(partition)),
                Ok(Command::Hold(partition, false)) => drop(self.held.remove(&partition)),
                Ok(Command::Commit(frontiers)) => self.commit(&frontiers),
                Ok(Command::Restart(partition, offset)) => self.restart(partition, offset),
                Ok(Command::Rejoin(wait)) => self.rejoin(wait).await,
                Ok(Command::Shutdown(frontiers)) => {
                    self.commit(&frontiers);
                    return false;
                }
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
    }

    /// Only a member that has the partition may commit, as with a real group.
    fn commit(&self, frontiers: &[(i32, i64)]) {
        let mut world = of(&self.me.world);
        for (partition, frontier) in frontiers {
            let mine = Some(&(self.me.slot, self.me.incarnation));
            if world.kafka.owned.get(partition) == mine {
                world.kafka.committed.insert(*partition, *frontier);
            }
        }
    }

    fn restart(&mut self, partition: i32, offset: i64) {
        if !self.positions.contains_key(&partition) && !self.stopped.contains(&partition) {
            return;
        }
        self.held.remove(&partition);
        self.stopped.remove(&partition);
        self.positions.insert(partition, offset);
        self.assignment += 1;
        of(&self.me.world).count("partition restarted");
        let _ = self.end.events.send(SourceEvent::Restarted { partition, assignment: self.assignment });
    }

    async fn rejoin(&mut self, wait: Duration) {
        of(&self.me.world).count("rejoined");
        let all: Vec<i32> = self.positions.keys().chain(&self.stopped).copied().collect();
        self.revoke(all, false).await;
        of(&self.me.world).leave(self.me.slot);
        sleep(wait).await;
        self.me.gate().await;
        self.join();
    }

    /// What the group wants of this member.
    async fn meet_group(&mut self) {
        let (slot, incarnation) = (self.me.slot, self.me.incarnation);
        let is_member = {
            let mut world = of(&self.me.world);
            world.put_out();
            world.is_member(slot, incarnation)
        };
        if !is_member {
            let all: Vec<i32> = self.positions.keys().chain(&self.stopped).copied().collect();
            if !all.is_empty() {
                of(&self.me.world).count("partitions lost");
                self.revoke(all, true).await;
            }
            self.join();
            return;
        }
        let (gone, gained) = {
            let world = of(&self.me.world);
            let is_mine = |p: &i32| world.kafka.target.get(p) == Some(&slot);
            let owned = world.owned_by(slot, incarnation);
            let gone: Vec<i32> = owned.into_iter().filter(|p| !is_mine(p)).collect();
            let free = |p: &i32| is_mine(p) && !world.kafka.owned.contains_key(p);
            (gone, world.kafka.log.keys().copied().filter(free).collect::<Vec<i32>>())
        };
        if !gone.is_empty() {
            self.revoke(gone, false).await;
        }
        if !gained.is_empty() {
            self.assign(gained).await;
        }
    }

    /// The callback of a revocation.
    async fn revoke(&mut self, partitions: Vec<i32>, lost: bool) {
        if partitions.is_empty() {
            return;
        }
        let (reply, answer) = channel();
        let event = SourceEvent::Revoke { partitions: partitions.clone(), lost, reply };
        if self.end.events.send(event).is_ok()
            && let Some(frontiers) = Self::wait_for(&self.me, answer, REVOKE_DEADLINE).await
            && !lost
        {
            self.commit(&frontiers);
        }
        for partition in &partitions {
            self.positions.remove(partition);
            self.stopped.remove(partition);
        }
        let mut world = of(&self.me.world);
        let mine = (self.me.slot, self.me.incarnation);
        world.kafka.owned.retain(|p, owner| *owner != mine || !partitions.contains(p));
        world.told(|| format!("{} gives up {partitions:?}, lost: {lost}", mine.0));
    }

    /// The callback of an assignment.
    async fn assign(&mut self, mut partitions: Vec<i32>) {
        let mine = (self.me.slot, self.me.incarnation);
        {
            let mut world = of(&self.me.world);
            // Giving up took time: the group may have put this member out meanwhile, or decided otherwise.
            let is_member = world.is_member(mine.0, mine.1);
            let kafka = &mut world.kafka;
            partitions.retain(|p| {
                is_member && kafka.target.get(p) == Some(&mine.0) && !kafka.owned.contains_key(p)
            });
            if partitions.is_empty() {
                return;
            }
            for partition in &partitions {
                world.kafka.owned.insert(*partition, mine);
            }
            world.told(|| format!("{} is given {partitions:?}", mine.0));
            world.count("assigned");
        }
        self.assignment += 1;
        let until = Instant::now() + ASSIGN_DEADLINE;
        let wanted = partitions.clone();
        let ask = async move |world: Shared| {
            let kafka = &of(&world).kafka;
            let candidate = |p: &i32| Candidate {
                partition: *p,
                low: 0,
                high: kafka.high(*p),
                committed: kafka.committed.get(p).copied(),
                is_short: false,
            };
            wanted.iter().map(candidate).collect::<Vec<_>>()
        };
        let mut starts = None;
        if let Ok(candidates) = self.me.call(Service::Brokers, "bounds", ask).await {
            let (reply, answer) = channel();
            let event = SourceEvent::Assign { assignment: self.assignment, candidates, until, reply };
            if self.end.events.send(event).is_ok() {
                starts = Self::wait_for(&self.me, answer, until - Instant::now()).await;
            }
        }
        if !of(&self.me.world).is_member(mine.0, mine.1) {
            // Put out meanwhile: whatever was taken over is lost again, as the next poll says.
            self.positions.extend(partitions.iter().map(|p| (*p, i64::MAX)));
            return;
        }
        let Some(starts) = starts else {
            self.stopped.extend(partitions);
            self.rejoin(Duration::from_millis(300)).await;
            return;
        };
        for (partition, start) in starts {
            self.held.remove(&partition);
            match start {
                Start::At(offset) => drop(self.positions.insert(partition, offset)),
                Start::Stopped => drop(self.stopped.insert(partition)),
            }
        }
    }

    /// Waits for the pipeline, as a callback does.
    async fn wait_for<T>(me: &Me, answer: Receiver<T>, deadline: Duration) -> Option<T> {
        let until = Instant::now() + deadline;
        loop {
            me.gate().await;
            match answer.try_recv() {
                Ok(answer) => return Some(answer),
                Err(TryRecvError::Disconnected) => return None,
                Err(TryRecvError::Empty) if Instant::now() >= until => return None,
                Err(TryRecvError::Empty) => {}
            }
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// One round of records, from partitions in any order.
    fn fetch(&mut self) {
        if self.end.outstanding.load(Ordering::Relaxed) >= OUTSTANDING_MAX {
            return;
        }
        let mut world = of(&self.me.world);
        // Something readable follows: at a partition's end it is noticed by its silence only, which takes minutes (scenarios.rs).
        let mut starts = self.positions.iter_mut().map(|(p, at)| (world.kafka.last(*p), at));
        let waits = starts.find(|(last, at)| **at < *last);
        if world.kafka.unreadable.contains(&self.me.slot)
            && let Some((last, at)) = waits
        {
            // A batch that cannot be read: the client says so, and goes on behind it.
            world.count("unreadable");
            world.kafka.unreadable.remove(&self.me.slot);
            *at = (*at + world.rng.random_range(1..4)).min(last);
            let _ = self.end.events.send(SourceEvent::Unreadable);
        }
        let mut order: Vec<i32> = self.positions.keys().copied().collect();
        order.shuffle(&mut world.rng);
        let mut chunk = Chunk::new(self.assignment);
        for partition in order {
            if self.held.contains(&partition) {
                continue;
            }
            for _ in 0..world.rng.random_range(1..8) {
                let at = self.positions[&partition];
                let Some((offset, entry)) = world.kafka.at(partition, at) else { break };
                let timestamp = Timestamp::LogAppendTime(entry.timestamp_ms);
                chunk.add((partition, offset, timestamp), Some(b"key"), Some(&entry.value));
                self.positions.insert(partition, offset + 1);
            }
        }
        if !chunk.records.is_empty() {
            self.end.outstanding.fetch_add(chunk.size_bytes(), Ordering::Relaxed);
            let _ = self.end.events.send(SourceEvent::Chunk(chunk));
        }
    }
}

/// Heartbeats go on whatever the poll thread does, unless the worker is stopped.
pub async fn heartbeats(me: Me) {
    loop {
        me.gate().await;
        if let Some(member) = of(&me.world).kafka.members.get_mut(&me.slot)
            && member.incarnation == me.incarnation
        {
            member.seen = Instant::now();
        }
        sleep(Duration::from_millis(300)).await;
    }
}

/// The brokers, asked beside the group.
pub struct Brokers(pub Me);

impl Brokers {
    fn ask<T: Send + 'static>(
        &self,
        what: &'static str,
        ask: impl FnOnce(&Kafka) -> T + Send + 'static,
    ) -> BrokerFuture<'_, T> {
        Box::pin(async move {
            let run = async move |world: Shared| ask(&of(&world).kafka);
            self.0.call(Service::Brokers, what, run).await.map_err(|why| anyhow::anyhow!(why))
        })
    }
}

impl Broker for Brokers {
    fn partitions(&self) -> BrokerFuture<'_, Vec<i32>> {
        self.ask("partitions?", |kafka| kafka.log.keys().copied().collect())
    }

    fn bounds<'a>(&'a self, partitions: &'a [i32]) -> BrokerFuture<'a, Vec<(i32, i64, i64)>> {
        let partitions = partitions.to_vec();
        self.ask("bounds?", move |kafka| partitions.iter().map(|p| (*p, 0, kafka.high(*p))).collect())
    }

    fn read_at<'a>(&'a self, wanted: &'a [(i32, i64)]) -> BrokerFuture<'a, BTreeMap<i32, Found>> {
        let wanted = wanted.to_vec();
        self.ask("what stands there?", move |kafka| {
            let found = |(p, at): &(i32, i64)| match kafka.at(*p, *at) {
                Some((offset, entry)) => (*p, Found::Record { offset, timestamp_ms: entry.timestamp_ms }),
                None => (*p, Found::End),
            };
            wanted.iter().map(found).collect()
        })
    }

    fn fingerprints_at<'a>(
        &'a self,
        wanted: &'a [(i32, i64)],
    ) -> BrokerFuture<'a, BTreeMap<i32, Option<i64>>> {
        let wanted = wanted.to_vec();
        self.ask("whose record is this?", move |kafka| {
            let found = |(p, at): &(i32, i64)| {
                let (offset, entry) = kafka.at(*p, *at)?;
                let chunk = chunk_of(*p, offset, entry);
                let record = chunk.records.first().filter(|_| offset == *at);
                Some((*p, record.map(|record| chunk.fingerprint(record))))
            };
            wanted.iter().filter_map(found).collect()
        })
    }

    fn record_at(&self, partition: i32, offset: i64) -> BrokerFuture<'_, Option<Chunk>> {
        self.ask("record?", move |kafka| {
            let (at, entry) = kafka.at(partition, offset)?;
            (at == offset).then(|| chunk_of(partition, at, entry))
        })
    }
}

fn chunk_of(partition: i32, offset: i64, entry: &Entry) -> Chunk {
    let mut chunk = Chunk::new(0);
    let timestamp = Timestamp::LogAppendTime(entry.timestamp_ms);
    chunk.add((partition, offset, timestamp), Some(b"key"), Some(&entry.value));
    chunk
}
