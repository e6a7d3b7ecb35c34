//! feed-worker: feed interactions from Kafka to Postgres and to Parquet on S3, exactly once in effect.
//!
//! ```text
//! feed.interactions.v1 ──▶ validate ──▶ user_interactions ──▶ exports/YYYY-MM-DD/*.parquet
//!                             └───────▶ feed.interactions.v1.dlq
//! ```
//!
//! ARCHITECTURE.md has the map; [`pipeline`] has the control flow; what stands around it are leaves.

#![forbid(unsafe_code)]

pub mod assignment;
pub mod audit;
pub mod command;
pub mod config;
pub mod event;
pub mod export;
pub mod failpoint;
pub mod kafka;
pub mod lag;
pub mod outside;
pub mod partition;
pub mod pipeline;
pub mod placement;
pub mod postgres;
pub mod produce;
pub mod record;
pub mod registry;
pub mod reject_limit;
pub mod retry;
pub mod row;
pub mod subjects;
pub mod telemetry;
pub mod topics;
pub mod trust;
