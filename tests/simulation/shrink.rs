//! A plan that fails, made as small as it can be while it still fails.

use crate::outcome;
use crate::plan::{Fault, Plan, Rates};

/// Plans that are a little smaller, the boldest first.
fn smaller(plan: &Plan) -> Vec<Plan> {
    let mut plans = Vec::new();
    let mut add = |change: &dyn Fn(&mut Plan)| {
        let mut smaller = plan.clone();
        change(&mut smaller);
        if smaller != *plan {
            plans.push(smaller);
        }
    };
    let faults = plan.faults.len();
    for half in [0..faults / 2, faults / 2..faults] {
        add(&|p| drop(p.faults.drain(half.clone())));
    }
    add(&|p| p.rates = Rates::default());
    add(&|p| p.rates.late = 0);
    add(&|p| p.rates.lost_answer = 0);
    add(&|p| p.rates.lost_request = 0);
    add(&|p| p.rates.slow = 0);
    add(&|p| {
        p.workers = (p.workers - 1).max(1);
        let workers = p.workers;
        p.faults.retain(|(_, fault)| slot_of(fault).is_none_or(|slot| slot < workers));
    });
    add(&|p| p.partitions = 1);
    add(&|p| p.records = (p.records / 2).max(1));
    add(&|p| (p.bad_permille, p.avro_permille) = (0, 0));
    add(&|p| p.lanes = 1);
    for at in 0..faults {
        add(&|p| {
            p.faults.remove(at);
        });
    }
    plans
}

fn slot_of(fault: &Fault) -> Option<usize> {
    match *fault {
        Fault::Crash { slot, .. }
        | Fault::CrashAtCall { slot, .. }
        | Fault::Freeze { slot, .. }
        | Fault::Shutdown { slot, .. }
        | Fault::Unreadable { slot } => Some(slot),
        _ => None,
    }
}

/// The smallest plan that was found, with what is wrong with it and what happened.
pub fn report(seed: u64) -> String {
    let mut plan = Plan::of(seed);
    let first = outcome(&plan, false).wrong;
    let mut tries = 0;
    'again: while tries < 400 {
        for candidate in smaller(&plan) {
            tries += 1;
            if !outcome(&candidate, false).wrong.is_empty() {
                plan = candidate;
                continue 'again;
            }
        }
        break;
    }
    let last = outcome(&plan, true);
    let log = last.log.join("\n");
    format!(
        "seed {seed} (FEED_SIM_SEED={seed} repeats it)\nwrong: {first:#?}\n\
         the smallest plan that fails: {plan:#?}\nwrong there: {:#?}\nwhat happened:\n{log}",
        last.wrong
    )
}
