//! The ledgers of all servers as one, for comparing and rebuilding. The first server's row has the topic's days.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context;
use sqlx::postgres::{PgConnection, PgPoolOptions};

use super::{FIRST_DAY, LEDGER};
use crate::command::Failure;
use crate::config::Config;
use crate::export::manifest::{FileEntry, GapEntry};
use crate::placement::Placement;
use crate::postgres::ledger::LedgerError;
use crate::postgres::reconcile::table_rows;
use crate::postgres::{self, Postgres, days, places};

pub(super) struct Ledgers {
    servers: Vec<PgConnection>,
    placement: Placement,
    topic: String,
}

impl Ledgers {
    /// Connects to every server. Refuses partitions that are not where they are configured: what lies there would be
    /// called missing.
    pub async fn open(config: &Config) -> Result<Self, Failure> {
        let mut servers = Vec::new();
        for server in 0..config.postgres.urls().count() {
            servers.push(connect(config, server).await?);
        }
        let placement = config.postgres.placed();
        let all = Postgres::all(config).map_err(anyhow::Error::from)?;
        match places::check(&all, &placement, &config.kafka.topic).await {
            Ok(()) => {}
            Err(LedgerError::Refused(why)) => return Err(Failure::Ledger(why)),
            Err(error) => return Err(anyhow::Error::from(error).context(LEDGER).into()),
        }
        Ok(Ledgers { servers, placement, topic: config.kafka.topic.clone() })
    }

    fn home(&mut self) -> &mut PgConnection {
        &mut self.servers[0]
    }

    /// The topic's closed and finished days.
    pub async fn topic_days(&mut self) -> Result<Option<(i32, i32)>, Failure> {
        let topic = self.topic.clone();
        let days = sqlx::query_as(
            "SELECT closed_day - date '1970-01-01', success_day - date '1970-01-01'
             FROM topic_ledger WHERE topic = $1",
        );
        Ok(days.bind(topic).fetch_optional(self.home()).await.context("reading the ledger")?)
    }

    /// The first day that the ledger has anything to say of.
    pub async fn first_day(&mut self) -> Result<Option<i32>, Failure> {
        let mut first: Option<i32> = None;
        for connection in &mut self.servers {
            let of_server: Option<i32> = sqlx::query_scalar(FIRST_DAY)
                .bind(&self.topic)
                .fetch_one(connection)
                .await
                .context(LEDGER)?;
            first = [first, of_server].into_iter().flatten().min();
        }
        Ok(first)
    }

    /// The last day that is finished or has a file.
    pub async fn last_day(&mut self) -> Result<Option<i32>, Failure> {
        let mut last = self.topic_days().await?.map(|(_, success_day)| success_day);
        for connection in &mut self.servers {
            let of_server: Option<i32> =
                sqlx::query_scalar("SELECT max(day) - date '1970-01-01' FROM export_files WHERE topic = $1")
                    .bind(&self.topic)
                    .fetch_one(connection)
                    .await
                    .context("reading the ledger's files")?;
            last = last.max(of_server);
        }
        Ok(last)
    }

    /// Where the next file of each partition begins.
    pub async fn export_frontiers(&mut self) -> Result<BTreeMap<i32, i64>, Failure> {
        let mut all = BTreeMap::new();
        for (server, connection) in self.servers.iter_mut().enumerate() {
            let found =
                days::export_frontiers(connection, &self.topic).await.context("reading the ledger")?;
            all.extend(found.into_iter().filter(|(p, _)| self.placement.server_of(*p) == server));
        }
        Ok(all)
    }

    /// The files of a day, by partition and offset, and the epochs under which they were written, by key.
    pub async fn files(&mut self, day: i32) -> Result<(Vec<FileEntry>, BTreeMap<String, i64>), Failure> {
        let (mut files, mut epochs) = (Vec::new(), BTreeMap::new());
        for connection in &mut self.servers {
            let found = days::files(&mut *connection, &self.topic, day, day).await;
            files.extend(found.context("reading the ledger's files")?);
            let found = days::epochs(connection, &self.topic, day).await;
            epochs.extend(found.context("reading the ledger's files")?);
        }
        files.sort_by_key(|file| (file.partition, file.first_offset));
        Ok((files, epochs))
    }

    pub async fn gaps(&mut self, day: i32) -> Result<Vec<GapEntry>, Failure> {
        let mut gaps = Vec::new();
        for connection in &mut self.servers {
            let found = days::gaps(connection, &self.topic, day).await;
            gaps.extend(found.context("reading the ledger's gaps")?);
        }
        gaps.sort_by_key(|gap| (gap.partition, gap.from_offset));
        Ok(gaps)
    }

    /// The partitions that the topic had on a day.
    pub async fn partitions(&mut self, day: i32) -> Result<Vec<i32>, Failure> {
        let mut all = Vec::new();
        for (server, connection) in self.servers.iter_mut().enumerate() {
            let found = days::partitions(connection, &self.topic, day).await;
            let found = found.context("reading the ledger's partitions")?;
            all.extend(found.into_iter().filter(|p| self.placement.server_of(*p) == server));
        }
        all.sort_unstable();
        Ok(all)
    }

    /// The table's rows of `[from, upto)`, in canonical form.
    pub async fn table_rows(&mut self, partition: i32, from: i64, upto: i64) -> Result<Vec<u8>, Failure> {
        let server = self.placement.server_of(partition);
        let connection = self.servers.get_mut(server).context("a server that is not configured")?;
        Ok(table_rows(connection, partition, from, upto).await.context("reading the table")?)
    }
}

async fn connect(config: &Config, server: usize) -> Result<PgConnection, Failure> {
    let options = postgres::connect_options(config, server).map_err(anyhow::Error::from)?;
    let options = options.application_name(postgres::COMMAND).options([("statement_timeout", "600000")]);
    let timeout = Duration::from_millis(config.postgres.connect_timeout_ms);
    let pool = PgPoolOptions::new().max_connections(1).acquire_timeout(timeout).connect_lazy_with(options);
    let connection = pool.acquire().await.map_err(|error| {
        Failure::Deadline(format!("connecting to postgres ({}): {error}", config.postgres.called(server)))
    })?;
    Ok(connection.detach())
}
