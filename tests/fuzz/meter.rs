//! What one input may cost.

use crate::allocations;

/// Of any input.
pub const BYTES_MAX: usize = 1 << 20;

/// Shorter inputs cannot cost much, and reading the counter would be most of the work.
const TIMED_BYTES_MIN: usize = 8 << 10;
/// The scheduler's ticks are up to 10 ms long, and a first touch of memory counts too.
const PROCESSOR_NS_BASE: u64 = 100_000_000;
/// Unoptimised, the worst that is known (60 keys of 17 KiB in escapes that differ at their end, each
/// compared with all before it) takes 700 to 1,300 ns a byte, as the machine is. Work that grows with the
/// square of 64 KiB takes ten times the limit.
const PROCESSOR_NS_PER_BYTE: u64 = 5_000;

/// Measures the code under test, and nothing around it.
#[derive(Debug, Default)]
pub struct Meter {
    /// What the target's own state has grown by since it was made: it counts for every input.
    kept: isize,
}

impl Meter {
    /// Runs `tested` on an input of `length` bytes, which may allocate `bytes_max`. What `tested`
    /// leaves allocated is taken for state that it keeps.
    pub fn run(&mut self, length: usize, bytes_max: usize, tested: impl FnOnce()) {
        let timed = length >= TIMED_BYTES_MIN;
        let processor_before = if timed { processor_ns() } else { 0 };
        let before = allocations::live();
        allocations::restart_peak();
        tested();
        let peak = self.kept + allocations::peak() - before;
        self.kept += allocations::live() - before;
        assert!(
            peak <= bytes_max.cast_signed(),
            "{peak} bytes allocated for an input of {length}, at most {bytes_max}"
        );
        if timed {
            let took = processor_ns().saturating_sub(processor_before);
            let most = PROCESSOR_NS_BASE + PROCESSOR_NS_PER_BYTE * length as u64;
            assert!(took <= most, "{took} ns of processor time for {length} bytes, at most {most}");
        }
    }
}

/// Time that this thread has spent on a processor: what other programs do does not count.
fn processor_ns() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").expect("the kernel counts");
    text.split(' ').next().and_then(|ns| ns.parse().ok()).expect("nanoseconds come first")
}
