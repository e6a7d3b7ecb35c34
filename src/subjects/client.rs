//! A registry by subject: its versions, its mode, its verdict. For commands; the worker's look-ups by id are
//! `crate::registry`.
//!
//! What this module guarantees: an answer is the registry's own, or an error says that there was none.

use std::time::Duration;

use anyhow::{Context, bail};
use reqwest::{Method, StatusCode, Url};
use serde_json::{Value, json};

use crate::config::Secret;
use crate::registry::RegistryAuth;
use crate::topics::Compatibility;

const TIMEOUT: Duration = Duration::from_secs(10);
const CONTENT_TYPE: &str = "application/vnd.schemaregistry.v1+json";

pub struct Client {
    http: reqwest::Client,
    url: Url,
    auth: Option<RegistryAuth>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    pub version: u32,
    pub id: u32,
    pub schema: String,
}

/// What the registry thinks of a schema beside one version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opinion {
    pub is_compatible: bool,
    pub messages: Vec<String>,
}

/// The registry answered, but not with what was asked for.
#[derive(Debug, thiserror::Error)]
#[error("the registry says {message} ({status})")]
pub struct Refusal {
    status: StatusCode,
    message: String,
}

impl Client {
    /// Connects to nothing yet. Errors: no address, or one that is none.
    pub fn new(url: &str, auth: Option<&RegistryAuth>) -> anyhow::Result<Self> {
        if url.is_empty() {
            bail!("no schema registry is configured: set FEED_WORKER_REGISTRY__URL");
        }
        let url = Url::parse(url).ok().filter(|url| !url.cannot_be_a_base());
        let url = url.context("the registry's address cannot be used")?;
        let http = reqwest::Client::builder().timeout(TIMEOUT).build()?;
        Ok(Self { http, url, auth: auth.cloned() })
    }

    /// Oldest first; none for a subject that is not there.
    pub async fn versions(&self, subject: &str) -> anyhow::Result<Vec<Version>> {
        let numbers = match self.call(Method::GET, &["subjects", subject, "versions"], None).await? {
            Ok(numbers) => numbers,
            Err(refusal) if refusal.status == StatusCode::NOT_FOUND => return Ok(Vec::new()),
            Err(refusal) => return Err(refusal.error("asking for the subject's versions")),
        };
        let numbers: Vec<u32> = serde_json::from_value(numbers).context("the registry's list of versions")?;
        let mut versions = Vec::with_capacity(numbers.len());
        for number in numbers {
            let path = ["subjects", subject, "versions", &number.to_string()];
            let found = self.call(Method::GET, &path, None).await?;
            let found = found.map_err(|refusal| refusal.error("asking for a version"))?;
            versions.push(version(&found)?);
        }
        Ok(versions)
    }

    /// The mode that holds for the subject, and whether it is the subject's own.
    pub async fn mode(&self, subject: &str) -> anyhow::Result<(Compatibility, bool)> {
        match self.call(Method::GET, &["config", subject], None).await? {
            Ok(found) => return Ok((mode(&found)?, true)),
            Err(refusal) if refusal.status == StatusCode::NOT_FOUND => {}
            Err(refusal) => return Err(refusal.error("asking for the subject's mode")),
        }
        let found = self.call(Method::GET, &["config"], None).await?;
        Ok((mode(&found.map_err(|refusal| refusal.error("asking for the mode"))?)?, false))
    }

    /// Makes a mode the subject's own.
    pub async fn set_mode(&self, subject: &str, mode: Compatibility) -> anyhow::Result<()> {
        let body = json!({ "compatibility": mode.as_str() });
        let answer = self.send(Method::PUT, &["config", subject], Some(&body)).await?;
        answer.map(drop).map_err(|refusal| refusal.error("setting the subject's mode"))
    }

    /// Whether the schema goes with one version of the subject, under the subject's mode.
    pub async fn opinion(&self, subject: &str, version: u32, schema: &str) -> anyhow::Result<Opinion> {
        let path = ["compatibility", "subjects", subject, "versions", &version.to_string()];
        let found = self.call(Method::POST, &path, Some(schema)).await?;
        let found = found.map_err(|refusal| refusal.error("asking whether the schema is compatible"))?;
        let is_compatible = found.get("is_compatible").and_then(Value::as_bool);
        let messages = found.get("messages").and_then(Value::as_array).into_iter().flatten();
        Ok(Opinion {
            is_compatible: is_compatible
                .context("the registry did not say whether the schema is compatible")?,
            messages: messages.filter_map(Value::as_str).map(str::to_owned).collect(),
        })
    }

    /// The version that this schema is, if it is one.
    pub async fn look_up(&self, subject: &str, schema: &str) -> anyhow::Result<Option<Version>> {
        match self.call(Method::POST, &["subjects", subject], Some(schema)).await? {
            Ok(found) => Ok(Some(version(&found)?)),
            Err(refusal) if refusal.status == StatusCode::NOT_FOUND => Ok(None),
            Err(refusal) => Err(refusal.error("looking the schema up")),
        }
    }

    /// None: the registry says that the schema is not compatible.
    pub async fn register(&self, subject: &str, schema: &str) -> anyhow::Result<Option<()>> {
        match self.call(Method::POST, &["subjects", subject, "versions"], Some(schema)).await? {
            Ok(_) => Ok(Some(())),
            Err(refusal) if refusal.status == StatusCode::CONFLICT => Ok(None),
            Err(refusal) => Err(refusal.error("registering the schema")),
        }
    }

    async fn call(
        &self,
        method: Method,
        path: &[&str],
        schema: Option<&str>,
    ) -> anyhow::Result<Result<Value, Refusal>> {
        let body = schema.map(|schema| json!({ "schema": schema }));
        self.send(method, path, body.as_ref()).await
    }

    async fn send(
        &self,
        method: Method,
        path: &[&str],
        body: Option<&Value>,
    ) -> anyhow::Result<Result<Value, Refusal>> {
        let mut url = self.url.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(path);
        }
        if path.first() == Some(&"compatibility") {
            url.set_query(Some("verbose=true"));
        }
        let mut request = self.http.request(method, url).header("Accept", CONTENT_TYPE);
        request = match &self.auth {
            None => request,
            Some(RegistryAuth::Basic { username, password }) => {
                request.basic_auth(username, password.as_ref().map(Secret::expose))
            }
            Some(RegistryAuth::Bearer(token)) => request.bearer_auth(token.expose()),
        };
        if let Some(body) = body {
            request = request.header("Content-Type", CONTENT_TYPE).body(body.to_string());
        }
        let answer = request.send().await.context("the registry does not answer")?;
        let status = answer.status();
        let body = answer.bytes().await.context("the registry's answer broke off")?;
        let value: Option<Value> = serde_json::from_slice(&body).ok();
        if status.is_success() {
            return Ok(Ok(value.context("the registry's answer is not JSON: is this its address?")?));
        }
        let message = value.as_ref().and_then(|value| value.get("message")).and_then(Value::as_str);
        Ok(Err(Refusal { status, message: message.unwrap_or("without a reason").to_owned() }))
    }
}

impl Refusal {
    fn error(self, doing: &'static str) -> anyhow::Error {
        anyhow::Error::from(self).context(doing)
    }

    /// It could not answer, or not now: it says nothing about what was asked.
    pub fn is_outage(&self) -> bool {
        self.status.is_server_error() || self.status == StatusCode::TOO_MANY_REQUESTS
    }
}

fn version(found: &Value) -> anyhow::Result<Version> {
    let number = |key: &str| found.get(key).and_then(Value::as_u64).and_then(|n| u32::try_from(n).ok());
    Ok(Version {
        version: number("version").context("the registry's version has no number")?,
        id: number("id").context("the registry's version has no id")?,
        schema: found.get("schema").and_then(Value::as_str).unwrap_or_default().to_owned(),
    })
}

fn mode(found: &Value) -> anyhow::Result<Compatibility> {
    let text = found.get("compatibilityLevel").or_else(|| found.get("compatibility")).cloned();
    serde_json::from_value(text.unwrap_or_default()).context("the registry's mode is not known here")
}
