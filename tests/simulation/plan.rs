//! What happens in one run: the sizes, the rates of the network's failures, and the faults with their times.

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::world::Service;

/// How often the network fails, in thousandths of the calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rates {
    pub lost_request: u32,
    pub lost_answer: u32,
    pub late: u32,
    pub slow: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The worker in this slot is killed, and started again after so many ms.
    Crash { slot: usize, back_ms: u64 },
    /// The same at the n-th call from now, before it is sent or before its answer comes.
    CrashAtCall { slot: usize, calls: u64, before: bool, back_ms: u64 },
    /// The worker stops for so many ms; its requests go on.
    Freeze { slot: usize, for_ms: u64 },
    /// SIGTERM, and a new start.
    Shutdown { slot: usize, back_ms: u64 },
    /// A service refuses, or says nothing at all.
    Away { service: Service, for_ms: u64, silent: bool },
    /// The group deals its partitions anew.
    Rebalance,
    /// The next midnight comes so many ms from now.
    Midnight { in_ms: i64 },
    /// The brokers' clock is off by so much from now on.
    BrokerClock { skew_ms: i64 },
    /// The topic gets another partition.
    Grow,
    /// A worker's client cannot read what it fetched.
    Unreadable { slot: usize },
    /// Nothing is produced for so long.
    Idle { for_ms: u64 },
}

#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    pub seed: u64,
    pub workers: usize,
    pub partitions: i32,
    pub records: u64,
    /// How long faults go on.
    pub for_ms: u64,
    pub wall_ms: i64,
    pub rates: Rates,
    pub lanes: usize,
    pub batch_rows: usize,
    pub batch_age_ms: u64,
    pub roll_rows: u64,
    pub roll_age_ms: u64,
    pub catch_up_rows: u64,
    pub settle_ms: u64,
    pub memory_bytes: u64,
    pub close_delay_ms: u64,
    pub shutdown_rows_min: u64,
    pub bad_permille: u32,
    pub avro_permille: u32,
    pub faults: Vec<(u64, Fault)>,
    /// A protection that the world lacks, to see that its lack is noticed.
    pub without: Option<Protection>,
}

/// Conditions of the database and the bucket, each of which can be left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protection {
    EpochInPersist,
    FrontierInPersist,
    /// Epoch, frontier, day and primary key: each stands in for the others.
    AllInPersist,
    DayInPersist,
    EpochInEnter,
    ExportFrontierInEnter,
    PersistFrontierInEnter,
    FenceInRead,
    RowsInClose,
    FrontierInAdvance,
    DayInAdvance,
    AllPartitionsInCloseTopic,
    IfNoneMatch,
    NewEpoch,
    StartAfterClosedDay,
    PrimaryKey,
}

impl Protection {
    /// Those whose lack is noticed soon. The others, left out one at a time, were not noticed in 60 seeds.
    pub const ALONE: [Protection; 4] = [
        Protection::StartAfterClosedDay,
        Protection::IfNoneMatch,
        Protection::ExportFrontierInEnter,
        Protection::AllInPersist,
    ];

    /// Whether `part` is left out when this is.
    pub fn takes_out(self, part: Protection) -> bool {
        let persist = [
            Protection::EpochInPersist,
            Protection::FrontierInPersist,
            Protection::DayInPersist,
            Protection::PrimaryKey,
        ];
        self == part || self == Protection::AllInPersist && persist.contains(&part)
    }
}

/// 2026-02-16, 00:00 UTC.
pub const FIRST_MIDNIGHT_MS: i64 = 1_771_200_000_000;

impl Plan {
    /// The plan of a seed. What a seed means changes with this function: old seeds do not keep.
    pub fn of(seed: u64) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let r = &mut rng;
        let workers = r.random_range(1..=3);
        let for_ms = r.random_range(5_000..12_000);
        let calm = r.random_bool(0.15);
        let level = |r: &mut SmallRng, most: u32| if calm { 0 } else { r.random_range(0..=most) };
        let mut plan = Plan {
            seed,
            workers,
            partitions: r.random_range(1..=3),
            records: r.random_range(15..80),
            for_ms,
            wall_ms: FIRST_MIDNIGHT_MS + r.random_range(0..86_000_000),
            rates: Rates {
                lost_request: level(r, 40),
                lost_answer: level(r, 60),
                late: level(r, 50),
                slow: level(r, 60),
            },
            lanes: r.random_range(1..=2),
            batch_rows: r.random_range(1..12),
            batch_age_ms: r.random_range(5..60),
            roll_rows: r.random_range(2..12),
            roll_age_ms: r.random_range(300..3_000),
            catch_up_rows: r.random_range(2..30),
            settle_ms: r.random_range(0..300),
            memory_bytes: if r.random_bool(0.25) { 40_000 } else { 50_000_000 },
            close_delay_ms: r.random_range(300..1_500),
            shutdown_rows_min: r.random_range(1..4),
            bad_permille: if r.random_bool(0.5) { 120 } else { 0 },
            avro_permille: if r.random_bool(0.4) { 300 } else { 0 },
            faults: Vec::new(),
            without: None,
        };
        for _ in 0..r.random_range(3..12) {
            let at = r.random_range(200..for_ms);
            plan.faults.push((at, draw(r, workers)));
        }
        for _ in 0..r.random_range(0..3) {
            let at = r.random_range(1_000..for_ms);
            plan.faults.push((at, Fault::Midnight { in_ms: r.random_range(0..800) }));
        }
        plan.faults.sort_by_key(|(at, _)| *at);
        plan
    }

    /// A rougher plan without a protection: what the protection is for is rare in most plans.
    pub fn rough(seed: u64, without: Protection) -> Self {
        let mut plan = Plan::of(seed);
        let mut rng = SmallRng::seed_from_u64(!seed);
        let r = &mut rng;
        plan.without = Some(without);
        plan.workers = plan.workers.max(2);
        plan.rates = Rates { lost_answer: 60, late: r.random_range(20..120), slow: 100, ..plan.rates };
        for _ in 0..r.random_range(2..8) {
            plan.faults.push((r.random_range(200..plan.for_ms), draw(r, plan.workers)));
        }
        for _ in 0..2 {
            let at = r.random_range(1_000..plan.for_ms);
            plan.faults.push((at, Fault::Midnight { in_ms: r.random_range(0..800) }));
        }
        plan.faults.sort_by_key(|(at, _)| *at);
        plan
    }
}

fn draw(r: &mut SmallRng, workers: usize) -> Fault {
    let slot = r.random_range(0..workers);
    let back_ms = r.random_range(0..3_000);
    match r.random_range(0..100) {
        0..14 => Fault::Crash { slot, back_ms },
        14..36 => {
            Fault::CrashAtCall { slot, calls: r.random_range(0..12), before: r.random_bool(0.4), back_ms }
        }
        36..54 => Fault::Freeze { slot, for_ms: r.random_range(200..9_000) },
        54..61 => Fault::Shutdown { slot, back_ms },
        61..73 => Fault::Away {
            service: Service::ALL[r.random_range(0..Service::ALL.len())],
            for_ms: r.random_range(100..5_000),
            silent: r.random_bool(0.3),
        },
        73..81 => Fault::Rebalance,
        81..87 => Fault::BrokerClock { skew_ms: r.random_range(-250..250) },
        87..90 => Fault::Grow,
        90..94 => Fault::Unreadable { slot },
        _ => Fault::Idle { for_ms: r.random_range(500..5_000) },
    }
}
