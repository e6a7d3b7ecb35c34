//! The export: rows into Parquet files, files into the bucket, days closed.

pub mod day;
pub mod exporter;
pub mod file;
pub mod manifest;
pub mod object;
pub mod read;
pub mod upload;
