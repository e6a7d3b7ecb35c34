//! Who watches what: users and videos that belong to taste clusters, with zipf popularity.
//!
//! The same people and videos exist whatever the seed, so that two runs (or two days) speak of the
//! same population; a seed only picks the events.

use rand::Rng;
use rand::rngs::SmallRng;
use rand_distr::{Distribution, Zipf};
use uuid::Uuid;

/// How often a user is shown a video of the own taste. High enough for a recommender to find,
/// low enough that popularity is a baseline worth beating.
const OWN_TASTE_SHARE: f64 = 0.8;
/// Skew of the users' activity: with 10,000 users the busiest sends about 1 % of the events.
const USER_SKEW: f64 = 0.6;
/// Skew of the videos' popularity, over all and within a taste.
const VIDEO_SKEW: f64 = 0.9;

const USER_SALT: u64 = 0x7573_6572_0000_0001;
const VIDEO_SALT: u64 = 0x7669_6465_6f00_0002;
const TASTE_SALT: u64 = 0x7461_7374_6500_0003;

/// Sizes and distributions of users, videos and tastes.
#[derive(Debug, Clone)]
pub struct Population {
    tastes: u64,
    user_rank: Zipf<f64>,
    video_rank: Zipf<f64>,
    video_rank_in_taste: Zipf<f64>,
}

/// One video shown to one user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Showing {
    pub user: u64,
    pub video: u64,
    /// The video is of the user's taste.
    pub is_to_taste: bool,
}

impl Population {
    /// Errors: sizes that make no population, as one sentence.
    pub fn new(users: u64, videos: u64, tastes: u64) -> Result<Self, String> {
        if users == 0 || videos == 0 || tastes == 0 {
            return Err("there must be at least one user, one video and one taste".to_owned());
        }
        if tastes > videos {
            return Err(format!("{tastes} tastes need at least as many videos, not {videos}"));
        }
        // Every taste has at least this many; the few that are left over belong to the first tastes.
        let videos_per_taste = videos / tastes;
        let zipf =
            |n: u64, skew: f64| Zipf::new(n as f64, skew).map_err(|error| format!("zipf over {n}: {error}"));
        Ok(Self {
            tastes,
            user_rank: zipf(users, USER_SKEW)?,
            video_rank: zipf(videos, VIDEO_SKEW)?,
            video_rank_in_taste: zipf(videos_per_taste, VIDEO_SKEW)?,
        })
    }

    pub fn draw(&self, rng: &mut SmallRng) -> Showing {
        let user = rank(self.user_rank.sample(rng));
        let taste = self.taste_of_user(user);
        let video = if rng.random::<f64>() < OWN_TASTE_SHARE {
            rank(self.video_rank_in_taste.sample(rng)) * self.tastes + taste
        } else {
            rank(self.video_rank.sample(rng))
        };
        Showing { user, video, is_to_taste: self.taste_of_video(video) == taste }
    }

    pub fn taste_of_user(&self, user: u64) -> u64 {
        mix(user ^ TASTE_SALT) % self.tastes
    }

    /// Neighbours in popularity have different tastes, so every taste has its hits and its tail.
    pub fn taste_of_video(&self, video: u64) -> u64 {
        video % self.tastes
    }
}

pub fn user_id(user: u64) -> Uuid {
    uuid_of(USER_SALT, user)
}

pub fn video_id(video: u64) -> Uuid {
    uuid_of(VIDEO_SALT, video)
}

/// 8 to 90 seconds, always the same for one video.
pub fn video_seconds(video: u64) -> f64 {
    8.0 + (mix(video ^ VIDEO_SALT) % 820) as f64 / 10.0
}

/// A version-4 UUID made of a salt and a number.
pub fn uuid_of(salt: u64, number: u64) -> Uuid {
    let high = mix(number ^ salt);
    let low = mix(high ^ number.rotate_left(32));
    uuid::Builder::from_u128((u128::from(high) << 64) | u128::from(low))
        .with_variant(uuid::Variant::RFC4122)
        .with_version(uuid::Version::Random)
        .into_uuid()
}

/// SplitMix64: turns neighbouring numbers into unrelated ones.
pub fn mix(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Zipf draws 1 for the most frequent.
fn rank(drawn: f64) -> u64 {
    (drawn as u64).saturating_sub(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use std::collections::HashMap;

    fn showings(count: usize) -> (Population, Vec<Showing>) {
        let population = Population::new(1000, 500, 20).unwrap();
        let mut rng = SmallRng::seed_from_u64(7);
        let showings = (0..count).map(|_| population.draw(&mut rng)).collect();
        (population, showings)
    }

    #[test]
    fn users_and_videos_are_zipf_distributed_and_in_range() {
        let (_, showings) = showings(50_000);
        let mut users: HashMap<u64, u32> = HashMap::new();
        let mut videos: HashMap<u64, u32> = HashMap::new();
        for showing in &showings {
            assert!(showing.user < 1000 && showing.video < 500);
            *users.entry(showing.user).or_default() += 1;
            *videos.entry(showing.video).or_default() += 1;
        }
        // Expected counts of ranks 1 and 100 differ by 100^skew.
        assert!(users[&0] > 8 * users[&99], "{} {}", users[&0], users[&99]);
        assert!(videos[&0] > 4 * videos[&99], "{} {}", videos[&0], videos[&99]);
        assert!(users.len() > 990, "the tail is there too: {}", users.len());
    }

    #[test]
    fn most_showings_are_to_the_users_taste() {
        let (population, showings) = showings(50_000);
        let mut to_taste = 0;
        for showing in &showings {
            let same = population.taste_of_user(showing.user) == population.taste_of_video(showing.video);
            assert_eq!(same, showing.is_to_taste);
            to_taste += u32::from(same);
        }
        assert!((39_000..43_000).contains(&to_taste), "{to_taste}");
    }

    #[test]
    fn ids_are_distinct_version_4_uuids() {
        let ids: std::collections::HashSet<_> = (0..10_000).flat_map(|n| [user_id(n), video_id(n)]).collect();
        assert_eq!(ids.len(), 20_000);
        assert!(ids.iter().all(|id| id.get_version_num() == 4));
    }

    #[test]
    fn a_population_of_nothing_is_refused() {
        assert!(Population::new(0, 1, 1).is_err());
        assert!(Population::new(1, 3, 4).is_err());
        assert!(Population::new(1, 1, 1).is_ok());
    }
}
