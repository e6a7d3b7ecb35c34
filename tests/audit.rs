//! The audit is worth something only as far as it is not the pipeline's own opinion.

use std::fs;
use std::path::PathBuf;

/// All of the crate that the audit may use: the clients that move bytes, of the store, and of Kafka with its tokens.
const ALLOWED: [&str; 2] = [
    "use crate::export::object::{ListedObject, ObjectInfo, ObjectStore, StoreErrorKind, StoreFuture};",
    "use crate::kafka::probe::connect;",
];

#[test]
fn the_audit_shares_no_code_with_the_pipeline() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src/audit");
    let mut files = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        files += 1;
        for line in text.lines().map(str::trim).filter(|line| !line.starts_with("//")) {
            let foreign =
                line.contains("crate::") || line.contains("feed_worker::") || line.contains("#[path");
            let above = line.contains("super::super::");
            assert!(!above && (!foreign || ALLOWED.contains(&line)), "{}: {line}", path.display());
            assert!(
                !line.starts_with("use apache_avro"),
                "{}: values are read by the audit itself",
                path.display()
            );
        }
    }
    assert!(files > 10, "{files} files of the audit");
}
