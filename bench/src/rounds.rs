//! Measurements of all variants under one load, in rounds.

use std::process::Command;

use crate::{
    Result,
    plan::Plan,
    programs,
    record::{Record, median},
};

/// What each variant did under a load.
pub(crate) struct Rounds<'a> {
    pub(crate) plan: Plan,
    /// In the order of the names, a record a round each; the first is the baseline.
    pub(crate) found: Vec<(&'a str, Result<Vec<Record>>)>,
}

impl<'a> Rounds<'a> {
    /// Runs every variant once a round. One that fails is left out from then on.
    pub(crate) fn run(plan: Plan, rounds: usize, names: &[&'a str]) -> Self {
        let mut found: Vec<_> = names.iter().map(|name| (*name, Ok(Vec::new()))).collect();
        for _ in 0..rounds {
            for (name, found) in &mut found {
                if let Ok(records) = found {
                    match measure(name, &plan) {
                        Ok(record) => records.push(record),
                        Err(error) => *found = Err(error),
                    }
                }
            }
        }
        Self { plan, found }
    }

    /// The middle of the ratios of a variant's figure to another's, each taken within a round.
    pub(crate) fn ratio_to(&self, name: &str, other: &str, key: &str) -> Option<f64> {
        let records = |name| self.records(name)?.as_ref().ok();
        let pairs = records(name)?.iter().zip(records(other)?);
        let ratios = pairs.filter_map(|(own, other)| Some(own.get(key)? / other.get(key)?));
        let ratio = median(ratios.collect());
        ratio.is_finite().then_some(ratio)
    }

    /// The same, to the baseline.
    pub(crate) fn ratio(&self, name: &str, key: &str) -> Option<f64> {
        self.ratio_to(name, self.found.first()?.0, key)
    }

    /// Returns the records of a variant, or its error.
    pub(crate) fn records(&self, name: &str) -> Option<&Result<Vec<Record>>> {
        let (_, found) = self.found.iter().find(|(other, _)| *other == name)?;
        Some(found)
    }
}

/// Starts a process that measures.
pub(crate) fn measure(name: &str, plan: &Plan) -> Result<Record> {
    let (program, arguments) = programs::command(name)?;
    let output = Command::new(program)
        .current_dir(programs::FOLDER)
        .args(arguments)
        .args(plan.arguments())
        .output()?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        return Err(text.lines().last().unwrap_or("it failed").into());
    }
    Ok(Record::parse(&String::from_utf8(output.stdout)?))
}
