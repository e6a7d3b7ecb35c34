//! The lines that were not sent, with their numbers and reasons: a line of JSON for each.
//!
//! What this module guarantees: no line is named twice and none is forgotten, however often the run was killed.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::Path;

use anyhow::Context;
use serde::{Deserialize, Serialize};

use super::Refused;
use crate::event::Reject;

/// How many are kept for the terminal.
const SHOWN_MAX: usize = 20;
/// Larger than any line of the list. What is larger is somebody's data.
const LINE_BYTES_MAX: u64 = 1 << 16;
/// How every line of the list begins.
const BEGINNING: &[u8] = b"{\"line\":";

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
        refuse_other_contents(path)?;
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

/// The file is written anew from some line on: so nothing may stand in it but what an earlier run has written.
pub fn refuse_other_contents(path: &Path) -> anyhow::Result<()> {
    let context = || format!("the file of bad lines {}", path.display());
    let mut reader = match File::open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        opened => BufReader::new(opened.with_context(context)?),
    };
    let mut text = Vec::new();
    loop {
        text.clear();
        if (&mut reader).take(LINE_BYTES_MAX).read_until(b'\n', &mut text).with_context(context)? == 0 {
            return Ok(());
        }
        let is_ours = match text.strip_suffix(b"\n") {
            Some(line) => serde_json::from_slice::<BadLine>(line).is_ok(),
            // The last one, of a run that was killed while it wrote.
            None => text.starts_with(BEGINNING) || BEGINNING.starts_with(&text),
        };
        if !is_ours {
            let told =
                format!("{} is there already, and is no list of bad lines: say --bad-lines", path.display());
            return Err(Refused(told).into());
        }
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

    #[test]
    fn what_somebody_else_has_written_is_left_alone() {
        let path = std::env::temp_dir().join(format!("feed-worker-no-bad-lines-{}", std::process::id()));
        let ours = r#"{"line":3,"reason":"bad_uuid"}"#;
        for text in [
            "{\"userId\":\"x\"}\n".to_owned(),
            "precious".to_owned(),
            format!("{ours}\nprecious\n"),
            format!("{ours}\n{{\"lin\": 4"),
            "\n".to_owned(),
        ] {
            std::fs::write(&path, &text).unwrap();
            for lines in [0, 10] {
                let error = BadLines::open(Some(&path), lines).unwrap_err();
                assert!(error.downcast_ref::<Refused>().is_some(), "{text}: {error:#}");
            }
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text, "left as it was");
        }
        for text in [
            String::new(),
            format!("{ours}\n"),
            format!("{ours}\n{{\"line\":4,\"rea"),
            format!("{ours}\n{{\"l"),
        ] {
            std::fs::write(&path, &text).unwrap();
            BadLines::open(Some(&path), 10).unwrap();
        }
        std::fs::remove_file(path).unwrap();
    }
}
