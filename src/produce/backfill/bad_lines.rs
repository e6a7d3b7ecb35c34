//! The lines that were not sent, with their numbers and reasons: a line of JSON for each.
//!
//! What this module guarantees: no line is named twice and none is forgotten, however often the run was killed.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, BufWriter, Seek, SeekFrom, Write};
use std::path::Path;

use anyhow::Context;
use serde::{Deserialize, Serialize};

use crate::event::Reject;

/// How many are kept for the terminal.
const SHOWN_MAX: usize = 20;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BadLine {
    pub line: u64,
    pub reason: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub field: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub detail: Option<String>,
}

impl BadLine {
    pub fn new(line: u64, reject: &Reject) -> Self {
        Self {
            line,
            reason: reject.reason.as_str().to_owned(),
            field: reject.field.map(str::to_owned),
            detail: reject.detail.as_deref().map(str::to_owned),
        }
    }
}

/// The file, if there is one, and the first few for the terminal.
#[derive(Debug, Default)]
pub struct BadLines {
    file: Option<BufWriter<File>>,
    first: Vec<BadLine>,
}

impl BadLines {
    /// Keeps what an earlier run wrote of the lines up to `lines`; what came after will be judged again.
    pub fn open(path: Option<&Path>, lines: u64) -> anyhow::Result<Self> {
        let Some(path) = path else { return Ok(Self::default()) };
        Self::keep(path, lines).with_context(|| format!("the file of bad lines {}", path.display()))
    }

    fn keep(path: &Path, lines: u64) -> anyhow::Result<Self> {
        let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        let mut first = Vec::new();
        let mut kept_bytes = 0;
        if lines > 0 {
            let mut reader = BufReader::new(&file);
            let mut text = String::new();
            while reader.read_line(&mut text)? > 0 {
                let Ok(bad) = serde_json::from_str::<BadLine>(&text) else { break };
                if bad.line > lines || !text.ends_with('\n') {
                    break;
                }
                kept_bytes += text.len() as u64;
                if first.len() < SHOWN_MAX {
                    first.push(bad);
                }
                text.clear();
            }
        }
        file.set_len(kept_bytes)?;
        file.seek(SeekFrom::End(0))?;
        Ok(Self { file: Some(BufWriter::new(file)), first })
    }

    pub fn add(&mut self, bad: BadLine) -> anyhow::Result<()> {
        if let Some(file) = &mut self.file {
            serde_json::to_writer(&mut *file, &bad)?;
            file.write_all(b"\n").context("writing the file of bad lines")?;
        }
        if self.first.len() < SHOWN_MAX {
            self.first.push(bad);
        }
        Ok(())
    }

    /// To be called before a mark that counts them.
    pub fn sync(&mut self) -> anyhow::Result<()> {
        if let Some(file) = &mut self.file {
            file.flush()
                .and_then(|()| file.get_ref().sync_data())
                .context("writing the file of bad lines")?;
        }
        Ok(())
    }

    pub fn first(&self) -> &[BadLine] {
        &self.first
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::RejectReason;

    #[test]
    fn a_later_run_keeps_what_is_done_and_judges_the_rest_again() {
        let path = std::env::temp_dir().join(format!("feed-worker-bad-lines-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let bad = |line| BadLine::new(line, &Reject::new(RejectReason::BadUuid).field("userId"));
        let mut lines = BadLines::open(Some(&path), 0).unwrap();
        for line in [3, 10, 11] {
            lines.add(bad(line)).unwrap();
        }
        lines.sync().unwrap();
        drop(lines);
        let mut lines = BadLines::open(Some(&path), 10).unwrap();
        assert_eq!(lines.first(), [bad(3), bad(10)]);
        lines.add(bad(12)).unwrap();
        lines.sync().unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let numbers: Vec<u64> =
            text.lines().map(|line| serde_json::from_str::<BadLine>(line).unwrap().line).collect();
        assert_eq!(numbers, [3, 10, 12]);
        std::fs::remove_file(path).unwrap();
    }
}
