//! Runs targets: which inputs, on how many threads, and what becomes of one that fails.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::time::{Duration, Instant};

use crate::meter::{BYTES_MAX, Meter};
use crate::mutate::mutate;
use crate::properties::{TARGETS, Target};
use crate::support::Random;

/// Half of what a thread of the worker has: recursion without a bound shows early.
const STACK_BYTES: usize = 1 << 20;
/// Attempts at making a failing input smaller.
const SHRINK_ATTEMPTS: usize = 1_500;
/// And no longer than this: an attempt at an input that is slow takes as long as the input does.
const SHRINK_MAX: Duration = Duration::from_secs(30);

pub struct Settings {
    inputs: u64,
    seed: u64,
    target: Option<String>,
}

impl Settings {
    pub fn from_environment() -> Self {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let number = |name: &str, default| match variable(name) {
            Some(text) => text.parse().unwrap_or_else(|_| panic!("{name} is a number, not {text}")),
            None => default,
        };
        let seed = match variable("FEED_FUZZ_SEED").as_deref() {
            Some("random") => rand::random(),
            _ => number("FEED_FUZZ_SEED", 1),
        };
        let inputs = number("FEED_FUZZ_INPUTS", 1_000_000);
        Self { inputs, seed, target: variable("FEED_FUZZ_TARGET") }
    }
}

struct Failure {
    target: &'static str,
    what: String,
    message: String,
    input: Vec<u8>,
}

#[derive(Default)]
struct Tally {
    inputs: u64,
    accepted: u64,
}

/// Makes a target anew for each thread: it keeps state, as a decoder does.
type Make = fn() -> Box<dyn Target>;

pub fn run(settings: &Settings) {
    let started = Instant::now();
    // Straight to the terminal: the test runner keeps what a passing test prints to itself.
    let _ = writeln!(std::io::stderr(), "fuzz: FEED_FUZZ_SEED={}", settings.seed);
    let chosen = |make: &&Make| settings.target.as_deref().is_none_or(|name| make().name() == name);
    let makes: Vec<Make> = TARGETS.iter().filter(chosen).copied().collect();
    assert!(!makes.is_empty(), "no target has this name");
    let shares: u64 = makes.iter().map(|make| make().share()).sum();
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(8) as u64;
    let shard = |thread: u64| {
        let mut tallies = BTreeMap::new();
        for make in &makes {
            let inputs = (settings.inputs * make().share()).div_ceil(shares);
            let (name, tally) = run_shard(*make, settings.seed, inputs, thread, threads)?;
            tallies.insert(name, tally);
        }
        Ok(tallies)
    };
    let outcomes: Vec<Result<BTreeMap<&'static str, Tally>, Failure>> = std::thread::scope(|scope| {
        let shard = &shard;
        let running: Vec<_> =
            (0..threads).map(|thread| on_small_stack(scope, move || shard(thread))).collect();
        running.into_iter().map(|thread| thread.join().expect("failures are caught")).collect()
    });
    let mut sums: BTreeMap<&'static str, Tally> = BTreeMap::new();
    for outcome in outcomes {
        for (name, tally) in outcome.unwrap_or_else(|failure| report(&failure)) {
            let sum = sums.entry(name).or_default();
            sum.inputs += tally.inputs;
            sum.accepted += tally.accepted;
        }
    }
    let mut total = 0;
    for (name, sum) in &sums {
        total += sum.inputs;
        let line = format!("fuzz: {name}: {} inputs, {} accepted", sum.inputs, sum.accepted);
        let _ = writeln!(std::io::stderr(), "{line}");
        // If nothing were accepted, nothing would have been compared.
        assert!(sum.inputs < 500 || sum.accepted * 100 >= sum.inputs, "{line}");
        assert!(sum.inputs < 500 || sum.accepted < sum.inputs, "{line}");
    }
    assert!(total >= settings.inputs, "{total}");
    let _ = writeln!(std::io::stderr(), "fuzz: {total} inputs in {} s", started.elapsed().as_secs());
}

/// Every `threads`-th input of a target.
fn run_shard(
    make: Make,
    seed: u64,
    inputs: u64,
    thread: u64,
    threads: u64,
) -> Result<(&'static str, Tally), Failure> {
    let mut target = make();
    let name = target.name();
    let corpus = corpus_of(name);
    let mut meter = Meter::default();
    let mut tally = Tally::default();
    for number in (thread..inputs).step_by(threads as usize) {
        let random = &mut Random(seed ^ xxhash_rust::xxh3::xxh3_64_with_seed(name.as_bytes(), number));
        let input = make_input(&mut *target, &corpus, random);
        match check(&mut *target, &input, &mut meter) {
            Ok(accepted) => tally.accepted += u64::from(accepted),
            Err(message) => {
                let input = shrink(make, &input);
                let what = format!("FEED_FUZZ_SEED={seed}, input {number}");
                return Err(Failure { target: name, what, message, input });
            }
        }
        tally.inputs += 1;
    }
    Ok((name, tally))
}

/// A valid input, a file of the corpus, or a mutation of either; rarely something huge.
fn make_input(target: &mut dyn Target, corpus: &[(PathBuf, Vec<u8>)], random: &mut Random) -> Vec<u8> {
    if random.one_in(2_000) {
        return target.huge(random);
    }
    let mut input = match corpus.len() {
        0 => target.generate(random),
        files if random.one_in(4) => corpus[random.below(files)].1.clone(),
        _ => target.generate(random),
    };
    if !random.one_in(4) {
        let other = if random.one_in(4) { target.generate(random) } else { Vec::new() };
        mutate(&mut input, &other, random);
    }
    input
}

/// Every file of the corpus as it is; returns how many there are.
pub fn run_corpus() -> usize {
    let mut inputs = 0;
    for make in TARGETS {
        let corpus = corpus_of(make().name());
        inputs += corpus.len();
        let outcome = std::thread::scope(|scope| {
            let run = || {
                let mut target = make();
                let mut meter = Meter::default();
                for (path, input) in corpus {
                    if let Err(message) = check(&mut *target, &input, &mut meter) {
                        let what = path.display().to_string();
                        return Err(Failure { target: target.name(), what, message, input });
                    }
                }
                Ok(())
            };
            on_small_stack(scope, run).join().expect("failures are caught")
        });
        outcome.unwrap_or_else(|failure| report(&failure));
    }
    inputs
}

fn on_small_stack<'scope, T: Send + 'scope>(
    scope: &'scope std::thread::Scope<'scope, '_>,
    run: impl FnOnce() -> T + Send + 'scope,
) -> std::thread::ScopedJoinHandle<'scope, T> {
    std::thread::Builder::new().stack_size(STACK_BYTES).spawn_scoped(scope, run).expect("a thread")
}

fn corpus_of(name: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(name);
    let mut files: Vec<_> = std::fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    files.into_iter().map(|path| (path.clone(), std::fs::read(path).unwrap())).collect()
}

thread_local! {
    /// The message of the last panic of this thread.
    static PANIC: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Whether the input was accepted, or how it did harm.
fn check(target: &mut dyn Target, input: &[u8], meter: &mut Meter) -> Result<bool, String> {
    static QUIET: Once = Once::new();
    QUIET.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if std::thread::current().name().is_some() {
                return usual(panic);
            }
            PANIC.set(panic.to_string());
        }));
    });
    catch_unwind(AssertUnwindSafe(|| target.check(input, meter))).map_err(|_| PANIC.take())
}

/// Leaves out what is not needed for the failure, larger pieces first.
fn shrink(make: Make, input: &[u8]) -> Vec<u8> {
    let mut target = make();
    let mut smallest = input.to_vec();
    let started = Instant::now();
    let mut attempts = 0;
    let mut piece = (smallest.len() / 2).max(1);
    let may_try = |attempts| attempts < SHRINK_ATTEMPTS && started.elapsed() < SHRINK_MAX;
    while may_try(attempts) {
        let mut at = 0;
        let before = smallest.len();
        while at < smallest.len() && may_try(attempts) {
            let mut shorter = smallest.clone();
            drop(shorter.drain(at..(at + piece).min(smallest.len())));
            attempts += 1;
            if check(&mut *target, &shorter, &mut Meter::default()).is_err() {
                smallest = shorter;
            } else {
                at += piece;
            }
        }
        if piece == 1 && smallest.len() == before {
            break;
        }
        piece = (piece / 2).max(1);
    }
    smallest
}

fn report(failure: &Failure) -> ! {
    let Failure { target, what, message, input } = failure;
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("fuzz");
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join(format!("{target}-{:016x}", xxhash_rust::xxh3::xxh3_64(input)));
    std::fs::write(&path, input).unwrap();
    let shown = &input[..input.len().min(2_000)];
    panic!(
        "{target}, {what}: {message}\n{} bytes, in {}:\n{}",
        input.len(),
        path.display(),
        shown.escape_ascii()
    );
}

/// A target that fails in a way of its own, to try the harness on.
struct Planted(fn(&[u8]));

impl Target for Planted {
    fn name(&self) -> &'static str {
        "planted"
    }
    fn generate(&mut self, random: &mut Random) -> Vec<u8> {
        (0..=random.below(64)).map(|_| random.next() as u8).collect()
    }
    fn huge(&mut self, _: &mut Random) -> Vec<u8> {
        vec![0; 1 << 16]
    }
    fn check(&mut self, input: &[u8], meter: &mut Meter) -> bool {
        meter.run(input.len(), BYTES_MAX, || self.0(input));
        false
    }
}

fn find(make: Make, inputs: u64) -> (String, Vec<u8>) {
    std::thread::scope(|scope| {
        let found = on_small_stack(scope, move || {
            let mut target = make();
            let mut meter = Meter::default();
            for number in 0..inputs {
                let random = &mut Random(number);
                let input = if number % 50 == 49 { target.huge(random) } else { target.generate(random) };
                if let Err(message) = check(&mut *target, &input, &mut meter) {
                    let small = if input.len() < 1_000 { shrink(make, &input) } else { input };
                    return (message, small);
                }
            }
            panic!("not found");
        });
        found.join().expect("it is found")
    })
}

pub fn find_planted() -> (String, Vec<u8>) {
    find(|| Box::new(Planted(|input| assert!(!input.contains(&0xff), "planted"))), 1_000)
}

pub fn find_memory_hog() -> (String, Vec<u8>) {
    find(|| Box::new(Planted(|input| drop(vec![1u8; input.len() * 20_000]))), 1_000)
}

pub fn find_slow() -> (String, Vec<u8>) {
    fn square(input: &[u8]) {
        let pairs = input.iter().flat_map(|a| input.iter().map(move |b| (a, b)));
        std::hint::black_box(pairs.fold(0u64, |sum, (a, b)| std::hint::black_box(sum + u64::from(a ^ b))));
    }
    find(|| Box::new(Planted(square)), 50)
}
