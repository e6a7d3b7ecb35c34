//! Progress on standard error: a bar on a terminal, lines elsewhere.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use super::{Common, Progress};

/// What is shown at one moment.
#[derive(Debug, Clone, Copy, Default)]
pub struct Figures {
    /// In the unit of the total.
    pub done: u64,
    pub delivered: u64,
}

pub enum Display {
    Bar(ProgressBar),
    Lines { total: Option<u64>, started: Instant, last: u64 },
    None,
}

impl Display {
    /// `total`: how much there is to do, if that is known.
    pub fn new(common: &Common, total: Option<u64>) -> Self {
        let wants_bar = match common.progress {
            _ if common.quiet => return Self::None,
            Progress::None => return Self::None,
            Progress::Bar => true,
            Progress::Lines => false,
            Progress::Auto => std::io::stderr().is_terminal(),
        };
        if !wants_bar {
            return Self::Lines { total, started: Instant::now(), last: 0 };
        }
        let (bar, template) = match total {
            Some(total) => (ProgressBar::new(total), "{bar:32} {percent} %, {msg} delivered, {eta} left"),
            None => (ProgressBar::no_length(), "{spinner} {msg} delivered"),
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        Self::Bar(bar)
    }

    pub fn interval(&self) -> Duration {
        match self {
            Self::Bar(_) => Duration::from_millis(100),
            _ => Duration::from_secs(2),
        }
    }

    pub fn show(&mut self, figures: Figures) {
        match self {
            Self::Bar(bar) => {
                bar.set_message(figures.delivered.to_string());
                bar.set_position(figures.done);
            }
            Self::Lines { total, started, last } => {
                if figures.delivered > *last {
                    *last = figures.delivered;
                    let seconds = started.elapsed().as_secs_f64();
                    let part = total.filter(|total| *total > 0);
                    let part =
                        part.map_or(String::new(), |total| format!("{} %, ", 100 * figures.done / total));
                    let rate = figures.delivered as f64 / seconds;
                    eprintln!("{part}{} delivered after {seconds:.0} s ({rate:.0}/s)", figures.delivered);
                }
            }
            Self::None => {}
        }
    }

    pub fn finish(&mut self, figures: Figures) {
        if let Self::Bar(bar) = self {
            bar.set_message(figures.delivered.to_string());
            bar.set_position(figures.done);
            bar.finish();
        }
    }
}
