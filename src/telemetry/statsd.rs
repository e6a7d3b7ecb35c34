//! Lines on their way to the statsd agent.
//!
//! 1. Emitting a metric takes a short lock and copies a line; it never waits for the network.
//! 2. A line is sent within [`FLUSH_INTERVAL`], and at the end of the process.
//! 3. An agent that is absent, slow or full costs lines, never time or memory: what does not fit is dropped
//!    and counted.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs, UdpSocket};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use cadence::MetricSink;

use super::metrics;

/// Longer: lines arrive later, and in larger bursts. Shorter: more packets that are less full.
const FLUSH_INTERVAL: Duration = Duration::from_millis(500);

/// About 16,000 lines; a busy worker writes some hundred in an interval. Larger: a burst that the agent's
/// socket cannot take anyway. Smaller: lines are dropped while the sender waits for a name to be resolved.
const WAITING_BYTES_MAX: usize = 1 << 20;

/// What fits an Ethernet frame unfragmented, as Datadog's own clients reckon.
const PACKET_BYTES_MAX: usize = 1432;

/// An agent that moved is found again after so long.
const RESOLVE_INTERVAL: Duration = Duration::from_secs(60);

/// Lines that wait to be sent, one a line.
#[derive(Default)]
struct Waiting {
    lines: Mutex<String>,
    dropped: AtomicU64,
}

impl Waiting {
    fn lines(&self) -> MutexGuard<'_, String> {
        // Nothing under the lock can leave half a line.
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the recorder writes into.
#[derive(Clone, Default)]
pub(super) struct LineSink(Arc<Waiting>);

impl MetricSink for LineSink {
    fn emit(&self, line: &str) -> io::Result<usize> {
        let mut lines = self.0.lines();
        if lines.len() + line.len() + 1 > WAITING_BYTES_MAX {
            self.0.dropped.fetch_add(1, Ordering::Relaxed);
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        lines.push_str(line);
        lines.push('\n');
        Ok(line.len())
    }
}

/// Sends what waits, at an interval and once more when it is dropped.
#[derive(Default)]
pub struct FlushGuard {
    thread: Option<(mpsc::Sender<()>, JoinHandle<()>)>,
}

impl FlushGuard {
    /// Starts the thread that sends. Whether the agent is there, or its name known, does not matter yet.
    pub(super) fn start(addr: &str, sink: LineSink) -> io::Result<Self> {
        let mut sender = Sender::new(addr.to_owned(), sink.0);
        let (stop, stopped) = mpsc::channel();
        let thread = std::thread::Builder::new().name("statsd".to_owned()).spawn(move || {
            while stopped.recv_timeout(FLUSH_INTERVAL) == Err(RecvTimeoutError::Timeout) {
                sender.flush();
            }
            sender.flush();
            // The first one may have had drops to report.
            sender.flush();
        })?;
        Ok(Self { thread: Some((stop, thread)) })
    }
}

impl Drop for FlushGuard {
    fn drop(&mut self) {
        if let Some((stop, thread)) = self.thread.take() {
            drop(stop);
            let _ = thread.join();
        }
    }
}

/// The sending end. Owned by the thread.
struct Sender {
    addr: String,
    waiting: Arc<Waiting>,
    /// Swapped with the waiting lines, so that neither is allocated anew.
    taken: String,
    target: Option<(UdpSocket, SocketAddr)>,
    resolved_at: Option<Instant>,
}

impl Sender {
    fn new(addr: String, waiting: Arc<Waiting>) -> Self {
        Self { addr, waiting, taken: String::new(), target: None, resolved_at: None }
    }

    fn flush(&mut self) {
        self.resolve_when_due();
        self.taken.clear();
        std::mem::swap(&mut self.taken, &mut self.waiting.lines());
        let mut dropped = self.waiting.dropped.swap(0, Ordering::Relaxed);
        for packet in packets(&self.taken) {
            let sent = match &self.target {
                Some((socket, addr)) => socket.send_to(packet.as_bytes(), addr).is_ok(),
                None => false,
            };
            if !sent {
                dropped += packet.lines().count() as u64;
            }
        }
        if dropped > 0 {
            metrics::statsd_dropped(dropped);
        }
    }

    /// Without a target it tries again at the same distance: looking up a name may take seconds.
    fn resolve_when_due(&mut self) {
        if self.resolved_at.is_some_and(|at| at.elapsed() < RESOLVE_INTERVAL) {
            return;
        }
        match connect(&self.addr) {
            Ok(target) => self.target = Some(target),
            Err(error) => {
                tracing::warn!(addr = self.addr, %error, "statsd agent not found, metrics are dropped");
            }
        }
        self.resolved_at = Some(Instant::now());
    }
}

/// The socket stays unconnected: a connected one reports the ICMP answers of an absent agent as errors.
fn connect(addr: &str) -> io::Result<(UdpSocket, SocketAddr)> {
    let target = addr.to_socket_addrs()?.next().ok_or(io::ErrorKind::AddrNotAvailable)?;
    let socket = UdpSocket::bind(if target.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
    socket.set_nonblocking(true)?;
    Ok((socket, target))
}

/// Cuts after a line, at most [`PACKET_BYTES_MAX`] at a time, the last line break left out. A longer line
/// travels alone.
fn packets(lines: &str) -> impl Iterator<Item = &str> {
    let mut rest = lines;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let mut end = 0;
        for line in rest.split_inclusive('\n') {
            if end > 0 && end + line.len() - 1 > PACKET_BYTES_MAX {
                break;
            }
            end += line.len();
        }
        let (packet, after) = rest.split_at(end);
        rest = after;
        Some(packet.trim_end_matches('\n'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_hold_whole_lines_and_lose_none() {
        let lines: Vec<String> = (0..500).map(|n| format!("name.{n}:{}|c", "1".repeat(n % 90))).collect();
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        let packets: Vec<&str> = packets(&text).collect();
        assert!(packets.iter().all(|packet| packet.len() <= PACKET_BYTES_MAX));
        assert_eq!(packets.join("\n").lines().collect::<Vec<_>>(), lines);
        assert!(packets.len() < 30, "{} packets are hardly full", packets.len());
    }

    #[test]
    fn a_line_longer_than_a_packet_travels_alone() {
        let long = "x".repeat(2 * PACKET_BYTES_MAX);
        let text = format!("a:1|c\n{long}\nb:1|c\n");
        assert_eq!(packets(&text).collect::<Vec<_>>(), ["a:1|c", &long, "b:1|c"]);
    }

    #[test]
    fn what_does_not_fit_is_dropped_and_counted() {
        let sink = LineSink::default();
        let line = "x".repeat(1023);
        for _ in 0..1024 {
            sink.emit(&line).unwrap();
        }
        sink.emit(&line).unwrap_err();
        assert_eq!(sink.0.dropped.load(Ordering::Relaxed), 1);
        assert_eq!(sink.0.lines().len(), WAITING_BYTES_MAX);
    }

    #[test]
    fn an_absent_agent_costs_no_errors_and_an_unknown_one_only_lines() {
        let free = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let sink = LineSink::default();
        let mut sender = Sender::new(free.to_string(), sink.0.clone());
        for _ in 0..3 {
            sink.emit("a:1|c").unwrap();
            sender.flush();
        }
        assert!(sender.target.is_some());

        let mut sender = Sender::new("nobody.invalid:8125".to_owned(), sink.0.clone());
        sink.emit("a:1|c").unwrap();
        sender.flush();
        assert!(sender.target.is_none());
        assert!(sink.0.lines().is_empty());
    }
}
