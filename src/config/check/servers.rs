//! Whether servers and placement go together.

use std::str::FromStr;

use sqlx::postgres::PgConnectOptions;

use super::Checks;
use crate::config::Config;
use crate::placement::Placement;

const URLS: &str = "postgres.more_urls";
const PLACEMENT: &str = "postgres.placement";

pub fn check(config: &Config, checks: &mut Checks<'_>) {
    let postgres = &config.postgres;
    let urls: Vec<&str> = postgres.urls().collect();
    for (number, url) in urls.iter().enumerate().skip(1) {
        let scheme = url.starts_with("postgres://") || url.starts_with("postgresql://");
        if !scheme || PgConnectOptions::from_str(url).is_err() {
            let problem = format!(
                "the URL of server {number} is no Postgres URL: postgres://user:password@host:port/database, with \
                 %-escapes in the password, also for a comma"
            );
            checks.refuse(&[URLS], problem);
        } else if let Some(same) =
            (0..number).find(|one| postgres.location(*one) == postgres.location(number))
        {
            let problem = format!("servers {same} and {number} are the same: {}", postgres.location(number));
            checks.refuse(&["postgres.url", URLS], problem);
        }
    }
    let placement = match Placement::parse(&postgres.placement) {
        Ok(placement) => placement,
        Err(why) => return checks.refuse(&[PLACEMENT], format!("{why}; write 12-23: 1, 30: 2")),
    };
    // A command that needs no database may have the workers' configuration without it.
    if postgres.url.is_empty() && postgres.more_urls.is_empty() {
        return;
    }
    if let Some(server) = placement.servers().find(|server| *server >= urls.len()) {
        let problem =
            format!("there is no server {server}: the second names {} beside server 0", urls.len() - 1);
        checks.refuse(&[PLACEMENT, URLS], problem);
    }
    if let Some(idle) = (1..urls.len()).find(|server| !placement.servers().any(|used| used == *server)) {
        let problem = format!("no partition is on server {idle}: give it some, or leave it out");
        checks.refuse(&[PLACEMENT, URLS], problem);
    }
}
