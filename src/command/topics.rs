//! `feed-worker topics plan|apply|drift`: the topics of `topics.yaml`, in the cluster.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;

use anyhow::Context;

use crate::command::{ClientContext, Failure};
use crate::topics::cluster::Cluster;
use crate::topics::plan::{Change, TopicPlan, Verdict};
use crate::topics::{Contract, Topic, is_legal_name};

/// The topics of the contract in the cluster.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Show what `apply` would do. Ends with 0 if that is nothing, with 2 if there are differences.
    Plan(Which),
    /// Make it so: create topics, add partitions, set settings.
    ///
    /// What cannot be undone (more partitions, a shorter retention, another cleanup policy) is asked for on a
    /// terminal, and refused elsewhere unless --yes is said. Nothing is ever made smaller or deleted, and
    /// replicas are not moved: if the contract wants that, nothing at all is changed and the command ends with 2.
    /// Settings that the contract does not name stay as they are.
    Apply {
        #[command(flatten)]
        which: Which,
        /// Do what cannot be undone without asking.
        #[arg(long)]
        yes: bool,
    },
    /// For a scheduled job: silent and 0, or a line for each difference and 2.
    ///
    /// Settings that somebody set and the contract does not name are differences here.
    Drift(Which),
}

#[derive(Debug, clap::Args)]
struct Which {
    #[arg(long, default_value = "topics.yaml", value_name = "FILE")]
    file: PathBuf,
    /// Which overrides of the contract count; without it the contract as it is written.
    #[arg(long, visible_alias = "env", value_name = "NAME")]
    environment: Option<String>,
    /// Use another name for a topic of the contract; can be repeated.
    #[arg(long, value_name = "NAME=OTHER", value_parser = parse_override)]
    topic_override: Vec<(String, String)>,
}

pub async fn run(args: Args, cx: &ClientContext) -> Result<(), Failure> {
    match args.action {
        Action::Plan(which) => plan(&which, cx).await,
        Action::Apply { which, yes } => apply(&which, yes, cx).await,
        Action::Drift(which) => drift(&which, cx).await,
    }
}

async fn plan(which: &Which, cx: &ClientContext) -> Result<(), Failure> {
    let plans = Cluster::connect(&cx.kafka)?.plan(&which.topics()?).await?;
    show(&plans);
    match count(&plans) {
        0 => Ok(()),
        differences => {
            Err(Failure::Differs(format!("{differences} differences; `topics apply` is what changes them")))
        }
    }
}

async fn drift(which: &Which, cx: &ClientContext) -> Result<(), Failure> {
    let plans = Cluster::connect(&cx.kafka)?.plan(&which.topics()?).await?;
    let lines: Vec<String> = plans.iter().flat_map(TopicPlan::drift).collect();
    for line in &lines {
        println!("{line}");
    }
    if lines.is_empty() {
        return Ok(());
    }
    Err(Failure::Differs(format!("{} differences from {}", lines.len(), which.file.display())))
}

async fn apply(which: &Which, yes: bool, cx: &ClientContext) -> Result<(), Failure> {
    let cluster = Cluster::connect(&cx.kafka)?;
    let topics = which.topics()?;
    let plans = cluster.plan(&topics).await?;
    show(&plans);
    if count(&plans) == 0 {
        return Ok(());
    }
    let verdicts = || plans.iter().flat_map(TopicPlan::differences).map(Change::verdict);
    if verdicts().any(|verdict| matches!(verdict, Verdict::Refused(_))) {
        return Err(Failure::Differs("nothing was changed: see what is refused above".to_owned()));
    }
    if !yes && verdicts().any(|verdict| matches!(verdict, Verdict::Irreversible(_))) {
        if !std::io::stdin().is_terminal() {
            return Err(Failure::Differs(
                "nothing was changed: what cannot be undone needs --yes".to_owned(),
            ));
        }
        if !is_confirmed()? {
            return Err(Failure::Differs("nothing was changed".to_owned()));
        }
        // Whoever answers takes a while.
        if cluster.plan(&topics).await? != plans {
            return Err(Failure::Differs(
                "nothing was changed: the cluster is another by now; plan again".to_owned(),
            ));
        }
    }
    let left = cluster.apply(&plans).await?;
    if !left.is_empty() {
        show(&left);
        return Err(Failure::Differs(
            "asked for, but the cluster does not have it: this user may not (AlterConfigs), or somebody else changes it too"
                .to_owned(),
        ));
    }
    println!("{} changes made", count(&plans));
    Ok(())
}

fn show(plans: &[TopicPlan]) {
    for plan in plans {
        print!("{}", plan.text());
    }
}

fn count(plans: &[TopicPlan]) -> usize {
    plans.iter().map(|plan| plan.differences().count()).sum()
}

fn is_confirmed() -> anyhow::Result<bool> {
    print!("Some of this cannot be undone. Type yes to go on: ");
    std::io::stdout().flush().context("asking")?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).context("reading the answer")?;
    Ok(answer.trim() == "yes")
}

impl Which {
    fn topics(&self) -> anyhow::Result<Vec<Topic>> {
        let mut topics = Contract::read(&self.file)?.topics(self.environment.as_deref())?;
        for (name, other) in &self.topic_override {
            let topic = topics.iter_mut().find(|topic| topic.name == *name);
            let topic = topic.with_context(|| format!("--topic-override: there is no topic {name}"))?;
            topic.name.clone_from(other);
        }
        Ok(topics)
    }
}

fn parse_override(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((_, other)) if !is_legal_name(other) => Err(format!("`{other}` is no topic's name")),
        Some((name, other)) if !name.is_empty() => Ok((name.to_owned(), other.to_owned())),
        _ => Err("must be NAME=OTHER".to_owned()),
    }
}
