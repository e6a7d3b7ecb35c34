//! The list of what was produced, one JSON object a line: `partition`, `offset`, `kind` (`valid` or `bad`), `reason`.

use std::collections::{BTreeMap, HashMap};
use std::io::BufRead;

use super::event::REASONS;

#[derive(Debug, Default)]
pub struct Produced(HashMap<i32, BTreeMap<i64, Option<&'static str>>>);

#[derive(serde::Deserialize)]
struct Line {
    partition: i32,
    offset: i64,
    kind: String,
    reason: Option<String>,
}

impl Produced {
    pub fn read(lines: impl BufRead) -> Result<Self, String> {
        let mut found = Produced::default();
        for (number, line) in lines.lines().enumerate() {
            let at = |error: &dyn std::fmt::Display| format!("line {}: {error}", number + 1);
            let line: Line = serde_json::from_str(&line.map_err(|e| at(&e))?).map_err(|e| at(&e))?;
            let reason = match line.kind.as_str() {
                "valid" => None,
                _ => Some(
                    REASONS
                        .iter()
                        .find(|known| line.reason.as_deref() == Some(known))
                        .copied()
                        .unwrap_or("bad"),
                ),
            };
            found.0.entry(line.partition).or_default().insert(line.offset, reason);
        }
        Ok(found)
    }

    /// None: not on the list; the reason if it was planted as bad.
    pub fn of(&self, partition: i32, offset: i64) -> Option<Option<&str>> {
        self.0.get(&partition)?.get(&offset).copied()
    }

    /// Offset, and whether it was planted as bad.
    pub fn range(&self, partition: i32, from: i64, upto: i64) -> impl Iterator<Item = (i64, bool)> + '_ {
        let listed = self.0.get(&partition).into_iter();
        listed
            .flat_map(move |listed| listed.range(from..upto.max(from)))
            .map(|(offset, reason)| (*offset, reason.is_some()))
    }
}
