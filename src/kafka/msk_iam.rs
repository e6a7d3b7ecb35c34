//! Tokens for Amazon MSK with IAM: a request to `kafka-cluster:Connect`, signed and then sent as a token.
//!
//! The credentials provider is built once; it is the SDK's usual chain (environment, web identity, instance
//! profile). Nothing is sent to MSK itself for a token, only to where the credentials come from.

use std::fmt::Write as _;
use std::time::{Duration, SystemTime};

use aws_config::BehaviorVersion;
use aws_credential_types::Credentials;
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider};
use aws_sigv4::http_request::{
    SignableBody, SignableRequest, SignatureLocation, SigningSettings, sign as sign_request,
};
use aws_sigv4::sign::v4;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::tokens::{Mint, MintFuture, Token};
use crate::config::Secret;
use crate::outside::unix_ms;

/// What MSK takes at most.
const VALID: Duration = Duration::from_secs(900);
/// When a token counts as old. With a new one at four fifths of it, an outage of where the credentials come
/// from of 7 minutes is survived. Larger: a shorter one. Smaller: more requests for credentials.
const FRESH: Duration = Duration::from_secs(540);
/// Clocks differ, and a token has to arrive before it is too old.
const MARGIN: Duration = Duration::from_secs(15);

/// Signs tokens with whatever credentials the environment has.
pub struct MskIam {
    region: String,
    credentials: SharedCredentialsProvider,
}

impl MskIam {
    pub async fn from_environment(region: &str) -> Result<Self, String> {
        let region = region.to_owned();
        let sdk = aws_config::defaults(BehaviorVersion::latest())
            .region(aws_config::Region::new(region.clone()))
            .load()
            .await;
        match sdk.credentials_provider() {
            Some(credentials) => Ok(MskIam { region, credentials }),
            None => Err("the environment has no place where AWS credentials could come from".to_owned()),
        }
    }

    pub fn new(region: &str, credentials: SharedCredentialsProvider) -> Self {
        MskIam { region: region.to_owned(), credentials }
    }
}

impl Mint for MskIam {
    fn mint(&self) -> MintFuture<'_> {
        Box::pin(async {
            let credentials = self.credentials.provide_credentials().await;
            // The chain's own text says which place said what; it repeats no credentials.
            let credentials = credentials.map_err(|error| {
                let source = std::error::Error::source(&error).map(ToString::to_string);
                format!("no AWS credentials: {error}: {}", source.unwrap_or_default())
            })?;
            sign(&credentials, &self.region, SystemTime::now())
        })
    }
}

/// The token for these credentials at this time.
pub fn sign(credentials: &Credentials, region: &str, now: SystemTime) -> Result<Token, String> {
    let wrong = |error: &dyn std::fmt::Display| format!("the token cannot be signed: {error}");
    let identity = credentials.clone().into();
    let mut settings = SigningSettings::default();
    settings.signature_location = SignatureLocation::QueryParams;
    settings.expires_in = Some(VALID);
    let params = v4::SigningParams::builder()
        .identity(&identity)
        .region(region)
        .name("kafka-cluster")
        .time(now)
        .settings(settings)
        .build()
        .map_err(|error| wrong(&error))?
        .into();
    let domain = if region.starts_with("cn-") { "amazonaws.com.cn" } else { "amazonaws.com" };
    let mut url = format!("https://kafka.{region}.{domain}/?Action=kafka-cluster%3AConnect");
    let request = SignableRequest::new("GET", &url, std::iter::empty(), SignableBody::Bytes(&[]))
        .map_err(|error| wrong(&error))?;
    let (instructions, _) = sign_request(request, &params).map_err(|error| wrong(&error))?.into_parts();
    let (_, query) = instructions.into_parts();
    for (name, value) in &query {
        let _ = write!(url, "&{name}={}", percent_encoded(value));
    }
    // Not signed: it only tells the broker's log who this is.
    let _ = write!(url, "&User-Agent=feed-worker%2F{}", env!("CARGO_PKG_VERSION"));

    let now_ms = unix_ms(now);
    // A token does not outlive the credentials that signed it.
    let credentials_end_ms = credentials.expiry().map_or(i64::MAX, unix_ms);
    let after = |span: Duration| now_ms + span.as_millis() as i64;
    let expires_at_ms = after(VALID - MARGIN).min(credentials_end_ms);
    Ok(Token {
        text: Secret::new(URL_SAFE_NO_PAD.encode(url)),
        principal: String::new(),
        fresh_until_ms: after(FRESH).min(expires_at_ms),
        expires_at_ms,
    })
}

/// Everything but what a URL may hold without meaning anything (RFC 3986).
fn percent_encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    const NOW_S: u64 = 1_768_478_400; // 2026-01-15T12:00:00Z

    fn now() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(NOW_S)
    }

    fn credentials(token: Option<&str>, expiry: Option<SystemTime>) -> Credentials {
        let secret = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";
        Credentials::new("AKIDEXAMPLE", secret, token.map(str::to_owned), expiry, "test")
    }

    fn url_of(token: &Token) -> String {
        String::from_utf8(URL_SAFE_NO_PAD.decode(token.text.expose()).unwrap()).unwrap()
    }

    /// The signatures are those of botocore's SigV4QueryAuth for the same credentials, region and time.
    #[test]
    fn tokens_are_what_another_implementation_signs() {
        let start = "https://kafka.eu-central-1.amazonaws.com/?Action=kafka-cluster%3AConnect\
            &X-Amz-Algorithm=AWS4-HMAC-SHA256\
            &X-Amz-Credential=AKIDEXAMPLE%2F20260115%2Feu-central-1%2Fkafka-cluster%2Faws4_request\
            &X-Amz-Date=20260115T120000Z&X-Amz-Expires=900&X-Amz-SignedHeaders=host";
        for (session, rest) in [
            (None, "&X-Amz-Signature=3c22ad1e38705c3e444f4faa96b51d5e41c33dcc69622f17223d3dbe65cc48a3"),
            (
                Some("FwoGZXIvYXdzEXAMPLE//token+with=signs"),
                "&X-Amz-Signature=003864fb594604c598bea91b69c0700b99304701f26486d34219b8ce2cc048cc\
                 &X-Amz-Security-Token=FwoGZXIvYXdzEXAMPLE%2F%2Ftoken%2Bwith%3Dsigns",
            ),
        ] {
            let token = sign(&credentials(session, None), "eu-central-1", now()).unwrap();
            let agent = format!("&User-Agent=feed-worker%2F{}", env!("CARGO_PKG_VERSION"));
            assert_eq!(url_of(&token), format!("{start}{rest}{agent}"));
            assert!(!token.text.expose().contains('='), "base64 without padding is wanted");
        }
    }

    #[test]
    fn a_token_is_fresh_for_nine_minutes_and_dies_with_its_credentials() {
        let at = |seconds: u64| (NOW_S + seconds) as i64 * 1000;
        let token = sign(&credentials(None, None), "eu-central-1", now()).unwrap();
        assert_eq!((token.fresh_until_ms, token.expires_at_ms), (at(540), at(885)));
        let soon = Some(now() + Duration::from_secs(300));
        let token = sign(&credentials(None, soon), "eu-central-1", now()).unwrap();
        assert_eq!((token.fresh_until_ms, token.expires_at_ms), (at(300), at(300)));
    }

    #[test]
    fn the_token_is_never_shown() {
        let token = sign(&credentials(Some("session"), None), "eu-central-1", now()).unwrap();
        assert!(!format!("{token:?}").contains(token.text.expose()));
    }

    #[test]
    fn chinas_regions_have_a_domain_of_their_own() {
        let token = sign(&credentials(None, None), "cn-north-1", now()).unwrap();
        assert!(url_of(&token).starts_with("https://kafka.cn-north-1.amazonaws.com.cn/?"));
    }
}
