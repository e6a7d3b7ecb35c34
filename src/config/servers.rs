//! Which Postgres servers there are, and what each is called where people read it.

use std::str::FromStr;

use sqlx::postgres::PgConnectOptions;

use super::Postgres;
use crate::placement::Placement;

impl Postgres {
    /// The servers' URLs, by their numbers. There is always a first.
    pub fn urls(&self) -> impl Iterator<Item = &str> {
        let more = self.more_urls.expose().split(|c: char| c == ',' || c.is_whitespace());
        std::iter::once(self.url.expose()).chain(more.filter(|url| !url.is_empty()))
    }

    pub fn is_spread(&self) -> bool {
        self.urls().nth(1).is_some()
    }

    /// Which partitions are where. What cannot be read was refused when the configuration was checked.
    pub fn placed(&self) -> Placement {
        Placement::parse(&self.placement).unwrap_or_default()
    }

    /// How a server is named to whoever has to correct its address.
    pub fn called(&self, server: usize) -> String {
        match (server, self.is_spread()) {
            (0, false) => "DATABASE_URL".to_owned(),
            (0, true) => format!("DATABASE_URL, server 0 at {}", self.location(0)),
            _ => format!("postgres.more_urls, server {server} at {}", self.location(server)),
        }
    }

    /// What a server is called: `host:port/database`, without who goes there.
    pub fn location(&self, server: usize) -> String {
        match self.urls().nth(server).map(PgConnectOptions::from_str) {
            Some(Ok(options)) => format!(
                "{}:{}/{}",
                options.get_host(),
                options.get_port(),
                options.get_database().unwrap_or_default()
            ),
            _ => "which the configuration does not have".to_owned(),
        }
    }
}
