//! Whether a command failed because a server is away: then trying again later may help, and nothing is to be corrected.

use std::error::Error;

use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaErrorCode as Code;
use schema_registry_converter::error::SRCError;

use crate::export::object::{StoreError, StoreErrorKind};
use crate::postgres;
use crate::subjects::client::Refusal;

/// Looked for in all causes: what a command was doing is told around them.
pub(super) fn is_outage(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        is(cause, postgres::is_passing)
            || is(cause, |error: &KafkaError| error.rdkafka_error_code().is_some_and(is_away))
            || is(cause, |error: &StoreError| error.kind == StoreErrorKind::Transient)
            || is(cause, |error: &reqwest::Error| {
                error.is_connect() || error.is_timeout() || error.is_request()
            })
            || is(cause, Refusal::is_outage)
            || is(cause, |error: &SRCError| error.retriable)
    })
}

fn is<E: Error + 'static>(cause: &(dyn Error + 'static), holds: impl Fn(&E) -> bool) -> bool {
    cause.downcast_ref::<E>().is_some_and(holds)
}

fn is_away(code: Code) -> bool {
    matches!(
        code,
        Code::BrokerTransportFailure
            | Code::AllBrokersDown
            | Code::Resolve
            | Code::OperationTimedOut
            | Code::MessageTimedOut
            | Code::RequestTimedOut
            | Code::NetworkException
            | Code::BrokerNotAvailable
            | Code::LeaderNotAvailable
            | Code::NotLeaderForPartition
            | Code::CoordinatorLoadInProgress
            | Code::CoordinatorNotAvailable
            | Code::NotCoordinator
            | Code::NotController
            | Code::NotEnoughReplicas
            | Code::NotEnoughReplicasAfterAppend
    )
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn an_outage_is_known_under_what_is_told_around_it() {
        let away = [
            anyhow::Error::from(KafkaError::MetadataFetch(Code::BrokerTransportFailure)),
            anyhow::Error::from(sqlx::Error::PoolTimedOut),
            anyhow::Error::from(StoreError {
                operation: "list",
                key: String::new(),
                kind: StoreErrorKind::Transient,
                message: String::new(),
            }),
        ];
        for error in away {
            let told = Err::<(), _>(error).context("asking").context("doing something").unwrap_err();
            assert!(is_outage(&told), "{told:#}");
        }
        let ours = [
            anyhow::Error::from(KafkaError::MetadataFetch(Code::TopicAuthorizationFailed)),
            anyhow::Error::from(sqlx::Error::RowNotFound),
            anyhow::anyhow!("the broker does not answer"),
        ];
        for error in ours {
            assert!(!is_outage(&error), "{error:#}");
        }
    }
}
