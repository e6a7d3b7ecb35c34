//! `feed-worker migrate`: the tables, in versions that are never changed once released.

use anyhow::Context;
use sqlx::migrate::MigrateError;
use sqlx::{Connection, PgConnection, PgPool};

use super::Failure;
use crate::config::Config;
use crate::postgres::{self, MIGRATIONS};

/// A connection to a server without time-outs: a migration may take longer than a worker's statement.
pub(super) async fn connect(config: &Config, server: usize) -> anyhow::Result<PgConnection> {
    let options = postgres::connect_options(config, server)?
        .application_name(postgres::COMMAND)
        .options([("statement_timeout", "0"), ("idle_in_transaction_session_timeout", "0")]);
    let connected = PgConnection::connect_with(&options).await;
    connected
        .with_context(|| format!("connecting to postgres ({}) to migrate", config.postgres.called(server)))
}

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Then give the roles feed_worker, feed_operator and feed_reader the rights of docs/policies/postgres-grants.sql.
    #[arg(long)]
    grants: bool,
}

/// What a role needs of the tables is known only when they are there: so it is granted after each migration.
const GRANTS: &str = include_str!("../../docs/policies/postgres-grants.sql");

/// Migrates every server, and grants if that was asked for. Both may be done again at any time.
pub async fn run_with(args: &Args, config: &Config) -> Result<(), Failure> {
    run(config).await?;
    for server in (0..config.postgres.urls().count()).filter(|_| args.grants) {
        let mut connection = connect(config, server).await?;
        let granted = sqlx::raw_sql(GRANTS).execute(&mut connection).await;
        granted.map_err(|error| {
            failure(error, "granting rights to the roles of docs/policies/postgres-roles.sql")
        })?;
        tracing::info!(server, "the roles have their rights");
    }
    Ok(())
}

/// Applies what is missing, on every server. Safe to run twice at once: an advisory lock orders the runs.
pub async fn run(config: &Config) -> Result<(), Failure> {
    for server in 0..config.postgres.urls().count() {
        migrate(config, server).await?;
    }
    Ok(())
}

async fn migrate(config: &Config, server: usize) -> Result<(), Failure> {
    let mut connection = connect(config, server).await?;
    MIGRATIONS.run(&mut connection).await.map_err(|error| match error {
        MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => {
            failure(error, "migrating the tables")
        }
        error => Failure::Ledger(format!("migrating the tables: {error}")),
    })?;
    tracing::info!(server, version = postgres::newest_version(), "the tables are of this program's version");
    Ok(())
}

/// Refuses tables of another version: an older one lacks what this program writes.
pub async fn check(pool: &PgPool) -> Result<(), Failure> {
    let version =
        postgres::version(pool).await.map_err(|error| failure(error, "reading the version of the tables"))?;
    // Newer tables are fine: migrations only add, so that an upgrade can be rolled back.
    if version < postgres::newest_version() {
        return Err(Failure::Ledger(format!(
            "the tables are of version {version}, this program needs {}: run `feed-worker migrate`",
            postgres::newest_version()
        )));
    }
    Ok(())
}

/// An outage says nothing about the tables.
fn failure(error: sqlx::Error, doing: &'static str) -> Failure {
    if postgres::is_passing(&error) {
        Failure::Other(anyhow::Error::from(error).context(doing))
    } else {
        Failure::Ledger(format!("{doing}: {error}"))
    }
}

impl Failure {
    /// Whether Postgres was away, or could not be written to, so that trying again may help.
    pub(super) fn is_outage_of_postgres(&self) -> bool {
        let Failure::Other(error) = self else { return false };
        error.chain().filter_map(|cause| cause.downcast_ref::<sqlx::Error>()).any(postgres::is_passing)
    }
}
