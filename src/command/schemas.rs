//! `feed-worker schemas check|register`: schemas beside those that are registered, for producers' pipelines.

use std::path::{Path, PathBuf};

use anyhow::Context;
use apache_avro::Schema;

use crate::command::{ClientContext, Failure};
use crate::produce::schemas::value_subject;
use crate::subjects::client::Client;
use crate::subjects::{self, Candidate, Findings};
use crate::topics::{Compatibility, Contract};

/// Schemas beside those that are registered.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Say whether a schema goes with every registered version that the subject's mode makes count, and which
    /// field does not. Registers nothing. Ends with 0 if it goes, with 2 if not.
    Check(Which),
    /// Register a schema, or find it registered; refuse it, with 2, if it does not go, with 65 if it is none.
    ///
    /// Without a file: every version of the event's schema, oldest first. The subject gets the mode that the contract
    /// wants for it.
    Register(Which),
}

#[derive(Debug, clap::Args)]
struct Which {
    /// The schema. Unless said: the event's.
    file: Option<PathBuf>,
    /// Unless said: that of the source topic's values.
    #[arg(long)]
    subject: Option<String>,
    /// Folder with one folder of schemas per topic.
    #[arg(long, default_value = "schemas", value_name = "DIR")]
    dir: PathBuf,
    /// Where the subject's wanted mode stands, if it does.
    #[arg(long, default_value = "topics.yaml", value_name = "FILE")]
    contract: PathBuf,
}

/// Oldest first: the registry numbers versions in the order of their registration, and checks each
/// against the one before.
const VERSIONS: [&str; 2] = ["interaction.v1.avsc", "interaction.avsc"];

/// The schemas are those of this topic, whatever the topic is called where they are registered.
const FOLDER: &str = "feed.interactions.v1";

pub async fn run(args: Args, cx: &ClientContext) -> Result<(), Failure> {
    let client = Client::new(&cx.registry_url, cx.registry_auth.as_ref())?;
    match args.action {
        Action::Check(which) => {
            let path = which.file.clone().unwrap_or_else(|| which.committed(VERSIONS[VERSIONS.len() - 1]));
            let findings = which.check(&client, cx, &read(&path)?).await?;
            print!("{}", findings.text());
            verdict(&findings, &path)
        }
        Action::Register(which) => {
            let paths = match &which.file {
                Some(path) => vec![path.clone()],
                None => VERSIONS.iter().map(|name| which.committed(name)).collect(),
            };
            for path in paths {
                register(&which, &client, cx, &path).await?;
            }
            Ok(())
        }
    }
}

async fn register(which: &Which, client: &Client, cx: &ClientContext, path: &Path) -> Result<(), Failure> {
    let schema = read(path)?;
    let subject = which.subject(cx);
    let shown = path.display();
    if let Err(error) = Schema::parse_str(&schema) {
        return Err(Failure::BadEvents(format!("{shown} is no Avro schema: {error}")));
    }
    // What is there stays, whatever came after it: an old version need not go with the newest.
    if let Some(known) = client.look_up(&subject, &schema).await? {
        println!("{subject}: {shown} is version {}, schema {}", known.version, known.id);
        // Now that there is a subject: some registries take no mode before.
        return set_mode(which, client, &subject).await;
    }
    let findings = which.check(client, cx, &schema).await?;
    if !findings.is_compatible() {
        print!("{}", findings.text());
    }
    verdict(&findings, path)?;
    if client.register(&subject, &schema).await?.is_none() {
        return Err(Failure::Differs(format!("the registry refused {shown}: it is not compatible")));
    }
    let known = client.look_up(&subject, &schema).await?;
    let known = known.context("the registry does not have what it has just registered")?;
    println!("{subject}: {shown} registered as version {}, schema {}", known.version, known.id);
    set_mode(which, client, &subject).await
}

/// What the contract wants the registry is to hold every producer to, also one that does not use this command.
async fn set_mode(which: &Which, client: &Client, subject: &str) -> Result<(), Failure> {
    let Some(wanted) = which.wanted_mode(subject)? else { return Ok(()) };
    let (mode, is_own) = client.mode(subject).await?;
    if mode != wanted || !is_own {
        client.set_mode(subject, wanted).await?;
        println!("{subject}: the mode is {} now, it was {}", wanted.as_str(), mode.as_str());
    }
    Ok(())
}

fn verdict(findings: &Findings, path: &Path) -> Result<(), Failure> {
    if findings.is_compatible() {
        return Ok(());
    }
    Err(Failure::Differs(format!("{} is not compatible with {}", path.display(), findings.subject)))
}

impl Which {
    fn subject(&self, cx: &ClientContext) -> String {
        self.subject.clone().unwrap_or_else(|| value_subject(&cx.topic))
    }

    fn committed(&self, name: &str) -> PathBuf {
        self.dir.join(FOLDER).join(name)
    }

    async fn check(&self, client: &Client, cx: &ClientContext, schema: &str) -> anyhow::Result<Findings> {
        let subject = self.subject(cx);
        let candidate = Candidate {
            subject: &subject,
            schema,
            wanted_mode: self.wanted_mode(&subject)?,
            is_event: subject == value_subject(&cx.topic),
        };
        subjects::check(client, &candidate).await.with_context(|| format!("at {}", cx.registry_url))
    }

    /// None: there is no contract here, or it does not name the subject.
    fn wanted_mode(&self, subject: &str) -> anyhow::Result<Option<Compatibility>> {
        if !self.contract.exists() {
            return Ok(None);
        }
        let topics = Contract::read(&self.contract)?.topics(None)?;
        let topic = topics.into_iter().find(|topic| topic.value.subject.as_deref() == Some(subject));
        Ok(topic.and_then(|topic| topic.value.compatibility))
    }
}

fn read(path: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(path)
        .with_context(|| format!("reading {}: run this in the repository, or say --dir", path.display()))
}
