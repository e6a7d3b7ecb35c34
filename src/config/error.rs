use std::fmt;

/// One thing that is wrong, and how to put it right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The key, or both keys where two do not go together.
    pub keys: Vec<String>,
    /// Where its value came from; as many as there are keys.
    pub sources: Vec<String>,
    /// What is wrong with it and what to do. Never repeats a secret.
    pub problem: String,
}

/// A configuration that the worker does not start with. Every problem found is named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    pub problems: Vec<Problem>,
}

impl ConfigError {
    /// The process ends with this code, before it has touched anything outside (EX_USAGE of sysexits.h).
    pub const EXIT_CODE: u8 = 64;

    pub(super) fn one(key: &str, source: &str, problem: impl Into<String>) -> Self {
        Self {
            problems: vec![Problem {
                keys: vec![key.to_owned()],
                sources: vec![source.to_owned()],
                problem: problem.into(),
            }],
        }
    }
}

impl std::error::Error for ConfigError {}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the configuration cannot be used")?;
        for problem in &self.problems {
            write!(f, "\n  {problem}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (key, source)) in self.keys.iter().zip(&self.sources).enumerate() {
            let and = if index == 0 { "" } else { " and " };
            write!(f, "{and}{key} ({source})")?;
        }
        write!(f, ": {}", self.problem)
    }
}
