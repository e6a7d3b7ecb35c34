//! The Postgres side: the ledger, persisting by COPY, reading back, days, migrations.

mod culprit;
mod database;
pub mod days;
pub mod lane;
pub mod ledger;
pub mod maintain;
pub mod places;
pub mod reconcile;
pub mod reread;
mod session;
mod spread;
pub mod transaction;

use std::str::FromStr;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use sqlx::{ConnectOptions, Connection};

use crate::config::Config;

pub use database::Postgres;
pub use spread::Spread;

/// The migrations, in the order in which they are applied.
pub static MIGRATIONS: sqlx::migrate::Migrator = sqlx::migrate!("src/postgres/migrations");

/// Connections of the pool beside the lanes: ledger, reading back, two for files that are entered.
/// Fewer make them wait for one another; more are load that Postgres gains nothing from.
const POOL_CONNECTIONS_MAX: u32 = 5;

/// How long a connection may take to show that it is usable when it comes back to the pool. Longer keeps a
/// silent one's place; shorter throws away what is only slow.
const RETURN_TIMEOUT: Duration = Duration::from_secs(2);

/// What a worker's sessions are called: a lane ends those of stopped workers, `ledger reconcile` refuses
/// while there are any.
const WORKER: &str = "feed-worker";
/// What an operator's commands are called.
pub const COMMAND: &str = "feed-worker-command";

/// How to connect to a server: every session bounds its statements and its idle transactions, so that a worker
/// that was stopped in the middle of one cannot hold a ledger row.
pub fn connect_options(config: &Config, server: usize) -> Result<PgConnectOptions, sqlx::Error> {
    let timeout_ms = config.postgres.statement_timeout_ms.to_string();
    let options = PgConnectOptions::from_str(config.postgres.urls().nth(server).unwrap_or_default())?
        .application_name(WORKER)
        .options([
            ("statement_timeout", timeout_ms.as_str()),
            ("idle_in_transaction_session_timeout", timeout_ms.as_str()),
            // Whatever the server's default: a commit that a crash of Postgres can take back would leave
            // files of rows that the table has not.
            ("synchronous_commit", "on"),
            // A host that is gone holds its locks until the server notices: within some 15 s.
            ("tcp_keepalives_idle", "5"),
            ("tcp_keepalives_interval", "2"),
            ("tcp_keepalives_count", "3"),
            ("tcp_user_timeout", "15000"),
            ("timezone", "UTC"),
        ])
        .disable_statement_logging();
    Ok(options)
}

/// The pool for everything but persisting. A connection whose server has become read-only (after a
/// failover) answers pings, but no write: it is thrown away before it is used.
pub fn pool(config: &Config, server: usize) -> Result<PgPool, sqlx::Error> {
    Ok(PgPoolOptions::new()
        .max_connections(POOL_CONNECTIONS_MAX)
        .acquire_timeout(Duration::from_millis(config.postgres.connect_timeout_ms))
        .test_before_acquire(false)
        // A call that was given up leaves its connection in the middle of an answer, or with a peer that has
        // gone silent: the pool's own test on return has no limit, and would keep the place for as long.
        .after_release(|connection, _| {
            Box::pin(async move {
                match tokio::time::timeout(RETURN_TIMEOUT, connection.ping()).await {
                    Ok(answer) => answer.map(|()| true),
                    Err(_) => Err(sqlx::Error::PoolTimedOut),
                }
            })
        })
        .before_acquire(|connection, _| {
            Box::pin(async move {
                let ask = sqlx::query_scalar::<_, String>("SHOW transaction_read_only").fetch_one(connection);
                match tokio::time::timeout(Duration::from_secs(2), ask).await {
                    Ok(Ok(read_only)) => Ok(read_only == "off"),
                    Ok(Err(_)) | Err(_) => Ok(false),
                }
            })
        })
        .connect_lazy_with(connect_options(config, server)?))
}

/// The version that this program needs.
pub fn newest_version() -> i64 {
    MIGRATIONS.iter().map(|m| m.version).max().unwrap_or(0)
}

/// The version of a server's tables; 0: there are none.
pub async fn version(pool: &PgPool) -> Result<i64, sqlx::Error> {
    let version: Result<Option<i64>, _> =
        sqlx::query_scalar("SELECT max(version) FROM _sqlx_migrations WHERE success").fetch_one(pool).await;
    match version {
        Err(error) if sqlstate(&error).as_deref() == Some("42P01") => Ok(0),
        version => Ok(version?.unwrap_or(0)),
    }
}

/// The statement that a lane's rows go through.
pub fn copy_in_statement() -> String {
    format!("COPY user_interactions ({}) FROM STDIN (FORMAT binary)", crate::row::COLUMNS.join(", "))
}

/// The SQLSTATE of an error that Postgres reported; none for everything else.
pub fn sqlstate(error: &sqlx::Error) -> Option<String> {
    error.as_database_error().and_then(sqlx::error::DatabaseError::code).map(std::borrow::Cow::into_owned)
}

/// Whether this is the world's fault, and waiting may help: no connection, a server that goes down, has no room, or
/// is not the primary, a lock. Everything else Postgres would say again.
pub fn is_passing(error: &sqlx::Error) -> bool {
    match sqlstate(error) {
        Some(code) => {
            code == "25006"
                || ["08", "40", "53", "55", "57", "58"].iter().any(|class| code.starts_with(class))
        }
        None => matches!(
            error,
            sqlx::Error::Io(_)
                | sqlx::Error::Tls(_)
                | sqlx::Error::Protocol(_)
                | sqlx::Error::PoolTimedOut
                | sqlx::Error::WorkerCrashed
        ),
    }
}

/// SQL for a day (days since 1970-01-01) bound as parameter `n`.
macro_rules! day {
    ($n:literal) => {
        concat!("(date '1970-01-01' + $", $n, "::int)")
    };
}
pub(crate) use day;
