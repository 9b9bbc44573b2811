//! What a measurement found, as one line that any program can print.

use std::{collections::BTreeMap, fmt};

/// Figures by name.
#[derive(Clone, Debug, Default)]
pub(crate) struct Record(BTreeMap<String, f64>);

impl Record {
    pub(crate) fn set(&mut self, key: &str, value: f64) {
        self.0.insert(key.to_owned(), value);
    }

    pub(crate) fn get(&self, key: &str) -> Option<f64> {
        self.0.get(key).copied()
    }

    /// Reads a line of `key=value`, separated by spaces. What is not that is passed over.
    pub(crate) fn parse(line: &str) -> Self {
        let pairs = line.split_whitespace().filter_map(|pair| {
            let (key, value) = pair.split_once('=')?;
            Some((key.to_owned(), value.parse().ok()?))
        });
        Self(pairs.collect())
    }
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (key, value) in &self.0 {
            write!(f, "{key}={value} ")?;
        }
        Ok(())
    }
}

/// The middle of a figure in many records; `NaN` where none has it.
pub(crate) fn middle(records: &[Record], key: &str) -> f64 {
    let values = records.iter().filter_map(|record| record.get(key));
    median(values.collect())
}

/// The middle one; `NaN` of none.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
