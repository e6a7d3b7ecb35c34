//! One generated interaction, before it is encoded.

use rand::rngs::SmallRng;
use rand::{Rng, RngCore, SeedableRng};
use uuid::Uuid;

use super::population::{self, Population, mix};

/// A field is `None` where a real client would have left it out.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    pub user_id: Uuid,
    pub video_id: Uuid,
    pub interaction_type: &'static str,
    pub watch_time_seconds: Option<f64>,
    pub occurred_at_ms: i64,
    pub event_id: Option<Uuid>,
    pub feed_session_id: Option<String>,
    pub algorithm: Option<&'static str>,
    pub experiment_variant_id: Option<&'static str>,
    pub recommendation_score: Option<f64>,
    pub position: Option<i32>,
    /// Distinct keys.
    pub metadata: Option<Vec<(&'static str, String)>>,
}

/// Types with their shares of 1,000 showings, to the user's taste and not.
const TYPES: [(&str, u32, u32); 7] = [
    ("view", 320, 480),
    ("complete", 290, 50),
    ("like", 160, 30),
    ("share", 50, 8),
    ("comment", 50, 10),
    ("follow", 30, 4),
    ("skip", 100, 418),
];

const EVENT_SALT: u64 = 0x6576_656e_7400_0004;
/// Events of one user that lie closer together than this many events of all users share a session.
const SESSION_EVENTS_LOG2: u32 = 14;

impl Event {
    /// Draws event `index` of a seed. Only `occurred_at_ms` depends on `now_ms`, the time of sending.
    pub fn draw(population: &Population, seed: u64, index: u64, now_ms: i64, rng: &mut SmallRng) -> Self {
        let showing = population.draw(rng);
        let interaction_type = draw_type(showing.is_to_taste, rng);
        let algorithm = draw_algorithm(rng);
        let score = draw_score(showing.is_to_taste, rng);
        let session = mix((showing.user << 24) ^ (index >> SESSION_EVENTS_LOG2));
        Self {
            user_id: population::user_id(showing.user),
            video_id: population::video_id(showing.video),
            interaction_type,
            watch_time_seconds: draw_watch_time(interaction_type, showing.video, rng),
            occurred_at_ms: now_ms - draw_delay_ms(rng),
            event_id: chance(0.7, rng).then(|| population::uuid_of(EVENT_SALT ^ mix(seed), index)),
            feed_session_id: chance(0.9, rng).then(|| format!("s-{session:016x}")),
            algorithm,
            experiment_variant_id: variant_of_user(showing.user),
            recommendation_score: (algorithm == Some("taste")).then_some(score),
            position: chance(0.9, rng).then(|| rng.random_range(0..50) * rng.random_range(0..50) / 50),
            metadata: draw_metadata(rng),
        }
    }
}

/// What [`filler`] has beside its noise: `{"filler":""}`.
pub(super) const FILLER_BYTES_MIN: usize = 13;
/// Below the worker's limit of 16 KiB by what an event in JSON may have on top.
pub(super) const FILLER_BYTES_MAX: usize = 16_000;
const FILLER_SALT: u64 = 0x6669_6c6c_6572_0005;

/// Metadata of so many bytes as canonical JSON, which lz4 does not make shorter. Drawn apart, so that all else of the event
/// is the same without it.
pub(super) fn filler(bytes: usize, seed: u64, index: u64) -> Option<Vec<(&'static str, String)>> {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut noise = vec![0; bytes.checked_sub(FILLER_BYTES_MIN)?];
    SmallRng::seed_from_u64(mix(seed ^ FILLER_SALT) ^ index).fill_bytes(&mut noise);
    let text = noise.into_iter().map(|byte| char::from(LETTERS[usize::from(byte % 64)])).collect();
    Some(vec![("filler", text)])
}

pub(super) fn chance(share: f64, rng: &mut SmallRng) -> bool {
    rng.random::<f64>() < share
}

fn draw_type(is_to_taste: bool, rng: &mut SmallRng) -> &'static str {
    let mut left = rng.random_range(0..1000);
    for (name, to_taste, other) in TYPES {
        let share = if is_to_taste { to_taste } else { other };
        if left < share {
            return name;
        }
        left -= share;
    }
    "view"
}

fn draw_algorithm(rng: &mut SmallRng) -> Option<&'static str> {
    match rng.random_range(0..100) {
        0..60 => Some("taste"),
        60..80 => Some("trending"),
        80..90 => Some("following"),
        90..95 => Some("fresh"),
        _ => None,
    }
}

/// The recommender knows the taste, but not well.
fn draw_score(is_to_taste: bool, rng: &mut SmallRng) -> f64 {
    let noise: f64 = rng.random();
    let score = if is_to_taste { 0.45 + 0.5 * noise } else { 0.1 + 0.5 * noise };
    (score * 1e4).round() / 1e4
}

fn draw_watch_time(interaction_type: &str, video: u64, rng: &mut SmallRng) -> Option<f64> {
    let part: f64 = rng.random();
    let length = population::video_seconds(video);
    let seconds = match interaction_type {
        "skip" => 0.2 + 2.8 * part,
        "complete" => length * (1.0 + 0.4 * part * part),
        // A follow is a tap on a profile: not every client says how long the video ran before.
        "follow" if part < 0.5 => return None,
        _ => length * (0.1 + 0.85 * part),
    };
    Some((seconds * 1e3).round() / 1e3)
}

/// From the tap to the send: mostly below a second; some were offline for hours, some clocks are fast.
fn draw_delay_ms(rng: &mut SmallRng) -> i64 {
    let part: f64 = rng.random();
    match rng.random_range(0..1000) {
        0..5 => (part * 6.0 * 3_600_000.0) as i64,
        5..7 => -((part * 120_000.0) as i64),
        _ => (-400.0 * (1.0 - part).ln()) as i64,
    }
}

/// A third of the users is in no experiment.
fn variant_of_user(user: u64) -> Option<&'static str> {
    match mix(user.rotate_left(17)) % 3 {
        0 => Some("ranker-7:control"),
        1 => Some("ranker-7:b"),
        _ => None,
    }
}

fn draw_metadata(rng: &mut SmallRng) -> Option<Vec<(&'static str, String)>> {
    const DEVICES: [&str; 4] = ["android", "ios", "web", "tv"];
    const NETWORKS: [&str; 3] = ["wifi", "5g", "4g"];
    const CITIES: [&str; 4] = ["Zürich", "São Paulo", "東京", "Oslo"];
    if !chance(0.35, rng) {
        return None;
    }
    let device = DEVICES[rng.random_range(0..DEVICES.len())];
    let mut entries = vec![
        ("device", device.to_owned()),
        ("appVersion", format!("5.{}.{}", rng.random_range(0..20), rng.random_range(0..4))),
    ];
    if chance(0.5, rng) {
        let network = NETWORKS[rng.random_range(0..NETWORKS.len())];
        entries.push(("network", network.to_owned()));
    }
    if chance(0.2, rng) {
        entries.push(("city", CITIES[rng.random_range(0..CITIES.len())].to_owned()));
    }
    if chance(0.02, rng) {
        // What people type: quotes, a line break, an emoji, a backslash.
        entries.push(("caption", "she said \"wow\" 🎬\n\\o/ \u{1}".to_owned()));
    }
    Some(entries)
}
