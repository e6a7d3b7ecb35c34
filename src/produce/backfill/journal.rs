//! How far a run has come, in a file that survives it.
//!
//! What this module guarantees: a mark that is read back was written whole, and was true when it was written; two
//! runs never share a journal. The file is lines of JSON: what the run is, then a mark now and then.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use serde::{Deserialize, Serialize};

use super::doubles::Unchecked;
use super::lines::Position;
use super::tracker::Mark;

/// What a run is. A later run goes on only if it would do the same.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Begin {
    pub version: u32,
    /// Names the run in the headers of its records.
    pub run: String,
    pub cluster: String,
    pub topic: String,
    pub encoding: String,
    /// The ends of the partitions before the first line was sent.
    pub offsets: BTreeMap<i32, i64>,
}

pub const VERSION: u32 = 1;

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    lines: u64,
    bytes: u64,
    /// Hexadecimal.
    hash: String,
    is_terminated: bool,
    delivered: u64,
    left_out: u64,
    offsets: BTreeMap<i32, i64>,
    #[serde(default, skip_serializing_if = "is_zero")]
    doubles: u64,
    /// From where on doubles were not looked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    unchecked: Option<Unchecked>,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde asks for a reference
fn is_zero(number: &u64) -> bool {
    *number == 0
}

#[derive(Debug)]
pub struct Journal {
    file: File,
    path: PathBuf,
}

impl Journal {
    /// Opens or creates it, for this process alone. With it comes what an earlier run has left.
    pub fn open(path: &Path) -> anyhow::Result<(Self, Option<(Begin, Mark)>)> {
        let shown = path.display();
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .with_context(|| format!("opening the journal {shown}"))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                bail!("the journal {shown} is in use: another run sends this input")
            }
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("locking the journal {shown}"));
            }
        }
        let mut text = Vec::new();
        file.read_to_end(&mut text).with_context(|| format!("reading the journal {shown}"))?;
        // What follows the last line feed was not written whole. Nothing is cut before the rest was understood: this
        // may be somebody's data.
        let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let (whole, torn) = text.split_at(whole);
        let found = parse(whole).with_context(|| format!("{shown} is no journal of `produce`"))?;
        ensure!(
            found.is_some() || torn.is_empty() || torn.starts_with(b"{\"version\":"),
            "{shown} is no journal of `produce`"
        );
        file.set_len(whole.len() as u64).and_then(|()| file.seek(SeekFrom::End(0)).map(drop))?;
        Ok((Self { file, path: path.to_owned() }, found))
    }

    /// Before the first line is sent.
    pub fn begin(&mut self, begin: &Begin) -> anyhow::Result<()> {
        self.append(begin)?;
        // The folder knows the file too: else a crash of the machine could lose the journal and keep the records.
        let folder = self.path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let folder = folder.unwrap_or(Path::new("."));
        File::open(folder)
            .and_then(|folder| folder.sync_all())
            .with_context(|| format!("syncing {}", folder.display()))
    }

    pub fn mark(&mut self, mark: &Mark) -> anyhow::Result<()> {
        let position = &mark.position;
        self.append(&Entry {
            lines: position.lines,
            bytes: position.bytes,
            hash: format!("{:032x}", position.hash),
            is_terminated: position.is_terminated,
            delivered: mark.delivered,
            left_out: mark.left_out,
            offsets: mark.offsets.clone(),
            doubles: mark.doubles,
            unchecked: mark.unchecked.clone(),
        })
    }

    fn append(&mut self, entry: &impl Serialize) -> anyhow::Result<()> {
        let mut line = serde_json::to_vec(entry)?;
        line.push(b'\n');
        let written = self.file.write_all(&line).and_then(|()| self.file.sync_data());
        written.with_context(|| format!("writing the journal {}", self.path.display()))
    }
}

fn parse(text: &[u8]) -> anyhow::Result<Option<(Begin, Mark)>> {
    let mut lines = text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    let Some(first) = lines.next() else {
        return Ok(None);
    };
    let begin: Begin = serde_json::from_slice(first)?;
    ensure!(begin.version == VERSION, "version {} is not known here", begin.version);
    let Some(last) = lines.next_back() else {
        let mark = Mark { offsets: begin.offsets.clone(), ..Mark::default() };
        return Ok(Some((begin, mark)));
    };
    let entry: Entry = serde_json::from_slice(last)?;
    let position = Position {
        lines: entry.lines,
        bytes: entry.bytes,
        hash: u128::from_str_radix(&entry.hash, 16).context("the hash")?,
        is_terminated: entry.is_terminated,
    };
    let mark = Mark {
        position,
        offsets: entry.offsets,
        delivered: entry.delivered,
        left_out: entry.left_out,
        doubles: entry.doubles,
        unchecked: entry.unchecked,
    };
    Ok(Some((begin, mark)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begin() -> Begin {
        Begin {
            version: VERSION,
            run: "r".to_owned(),
            cluster: "c".to_owned(),
            topic: "t".to_owned(),
            encoding: "json".to_owned(),
            offsets: BTreeMap::from([(0, 5)]),
        }
    }

    fn mark(lines: u64) -> Mark {
        let position = Position { lines, bytes: lines * 9, hash: u128::MAX - 3, is_terminated: true };
        let offsets = BTreeMap::from([(0, 5 + lines as i64)]);
        let unchecked = (lines == 40).then(|| Unchecked { lines: 7, offsets: BTreeMap::from([(0, 9)]) });
        Mark { position, offsets, delivered: lines, left_out: 0, doubles: lines / 20, unchecked }
    }

    fn path(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("feed-worker-journal-{}-{name}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        path
    }

    #[test]
    fn the_last_whole_mark_counts() {
        let path = path("marks");
        let (mut journal, found) = Journal::open(&path).unwrap();
        assert_eq!(found, None);
        journal.begin(&begin()).unwrap();
        drop(journal);
        let (mut journal, found) = Journal::open(&path).unwrap();
        let fresh = Mark { offsets: begin().offsets, ..Mark::default() };
        assert_eq!(found, Some((begin(), fresh)));
        journal.mark(&mark(10)).unwrap();
        journal.mark(&mark(20)).unwrap();
        drop(journal);
        // Killed in the middle of a write.
        let mut torn = std::fs::read(&path).unwrap();
        let whole = torn.len();
        torn.extend_from_slice(br#"{"lines":30,"byt"#);
        std::fs::write(&path, &torn).unwrap();
        let (mut journal, found) = Journal::open(&path).unwrap();
        assert_eq!(found, Some((begin(), mark(20))));
        assert_eq!(std::fs::metadata(&path).unwrap().len(), whole as u64);
        journal.mark(&mark(40)).unwrap();
        drop(journal);
        assert_eq!(Journal::open(&path).unwrap().1, Some((begin(), mark(40))));
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_journal_has_one_run_at_a_time() {
        let path = path("lock");
        let first = Journal::open(&path).unwrap();
        let error = Journal::open(&path).unwrap_err().to_string();
        assert!(error.contains("in use"), "{error}");
        drop(first);
        Journal::open(&path).unwrap();
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn something_else_is_no_journal() {
        let path = path("other");
        for text in ["{\"userId\":\"x\"}\n", "{\"userId\":\"x\"}", "{\"userId\":\"x\"}\nnot whole"] {
            std::fs::write(&path, text).unwrap();
            let error = Journal::open(&path).unwrap_err().to_string();
            assert!(error.contains("is no journal"), "{error}");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text, "left as it was");
        }
        std::fs::remove_file(path).unwrap();
    }
}
