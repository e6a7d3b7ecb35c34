//! `feed-worker schemas register`: the schemas of the topic, in the registry.

use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::command::{ClientContext, Failure};
use crate::produce::schemas;

/// The event's schemas in the registry.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Register every version of the value schema, oldest first; what is there already stays as it is.
    Register {
        /// Folder with one folder of schemas per topic.
        #[arg(long, default_value = "schemas", value_name = "DIR")]
        dir: PathBuf,
    },
}

/// Oldest first: the registry numbers versions in the order of their registration, and checks each
/// against the one before.
const VERSIONS: [&str; 2] = ["interaction.v1.avsc", "interaction.avsc"];

/// The schemas are those of this topic, whatever the topic is called where they are registered.
const FOLDER: &str = "feed.interactions.v1";

pub async fn run(args: Args, cx: &ClientContext) -> Result<(), Failure> {
    let Action::Register { dir } = args.action;
    let registry = schemas::registry(&cx.registry_url, cx.registry_auth.as_ref())?;
    let subject = schemas::value_subject(&cx.topic);
    let folder = dir.join(FOLDER);
    for name in VERSIONS {
        let schema_json = read(&folder.join(name))?;
        let id = schemas::register(&registry, &subject, &schema_json)
            .await
            .with_context(|| format!("{name} at {}", cx.registry_url))?;
        println!("{subject}: {name} is schema {id}");
    }
    Ok(())
}

fn read(path: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(path)
        .with_context(|| format!("reading {}: run this in the repository, or say --dir", path.display()))
}
