//! One byte budget for batches and files; the client's prefetch has its own part of it.

use std::time::Duration;

use super::{Pipeline, export_side};
use crate::export::exporter::Roll;
use crate::partition::Partition;
use crate::telemetry::metrics;

/// How long the store has to be away before memory is rather given back than filled with sealed files.
const STORE_AWAY: Duration = Duration::from_secs(1);

/// A file that takes less than a partition's share of the memory budget divided by this is not worth an object of
/// its own when memory is full. Larger makes small objects of what waits for a slow store; smaller drops and reads
/// back what could have been uploaded.
const ROLL_SHARE: usize = 4;

impl Pipeline {
    /// From three quarters of the budget on the largest files roll, and at its end also those whose turn to be
    /// uploaded is not yet; what is still above it is dropped and read back later, be the store away or only slow.
    pub(super) fn keep_memory(&mut self) {
        let budget = self.memory_budget();
        let away = self.store_is_away();
        let worth = (budget / (ROLL_SHARE * self.partitions.len().max(1))).max(1);
        // A sealed file is smaller, and goes when it is uploaded: it does not count for rolling others.
        while !away && self.memory_bytes() - self.sealed_bytes() > budget / 4 * 3 {
            let open = self.partitions.values_mut().filter(|p| !p.exporter.is_uploading());
            let largest = open.max_by_key(|p| p.exporter.open_bytes());
            // Else it is batches that take the memory: small files would give little of it back.
            let Some(partition) = largest.filter(|p| p.exporter.open_bytes() >= worth) else { break };
            seal(partition);
            self.start_uploads();
        }
        while self.memory_bytes() > budget {
            let open = self.partitions.values_mut().max_by_key(|p| p.exporter.open_bytes());
            if let Some(partition) = open.filter(|p| !away && p.exporter.open_bytes() >= worth) {
                seal(partition);
                self.start_uploads();
                continue;
            }
            let largest = self.partitions.values_mut().max_by_key(|p| p.exporter.sheddable_bytes());
            let Some(partition) = largest.filter(|p| p.exporter.sheddable_bytes() > 0) else { return };
            partition.exporter.shed();
            metrics::export_shed();
        }
    }

    /// Whether the store is away, as far as is known. Uploads are who asks it: once the last of them has ended with its
    /// partition, what it was told last says nothing any more.
    fn store_is_away(&mut self) -> bool {
        if !self.partitions.values().any(|p| p.exporter.is_uploading()) {
            self.store_away_since = None;
        }
        self.store_away_since.is_some_and(|since| since.elapsed() > STORE_AWAY)
    }

    /// What batches and files may take together; the client's prefetch has its own part.
    pub(super) fn memory_budget(&self) -> usize {
        let queue = self.config.kafka.queued_kbytes_max << 10;
        self.config.export.memory_bytes_max.saturating_sub(queue) as usize
    }

    /// Batches and files.
    pub(super) fn memory_bytes(&self) -> usize {
        self.partitions.values().map(|p| p.batch_bytes() + p.exporter.memory_bytes()).sum()
    }

    fn sealed_bytes(&self) -> usize {
        self.partitions.values().map(|p| p.exporter.sealed_bytes()).sum()
    }
}

/// Closes the open file to give memory back.
fn seal(partition: &mut Partition) {
    if let Err(error) = partition.exporter.seal(Roll::Memory) {
        export_side::halt(partition, &error);
    }
}
