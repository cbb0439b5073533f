//! What came out: a table, a JSON file, and the files of each defect.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use comfy_table::TableComponent;
use serde_json::{Value, json};

use crate::oracles::{Answer, Case};
use crate::verdict::{Tally, Verdict, Wrong};

/// So many templates may be declined, whole or in part.
const MAY_BE_DECLINED: usize = 8;
/// So many defects are shown at length.
const SHOWN: usize = 40;
/// So many requests are written that are declined for the same reason.
const EXAMPLES: usize = 3;

/// Counts of everything, and defects.
pub struct Report {
    /// Where requests that are wrong or declined are written.
    directory: PathBuf,
    suites: BTreeMap<String, BTreeMap<String, Tally>>,
    defects: Vec<String>,
}

impl Report {
    /// An empty one, which writes to `directory`.
    #[must_use]
    pub fn new(directory: PathBuf) -> Self {
        Self { directory, suites: BTreeMap::new(), defects: Vec::new() }
    }

    /// Begins a suite: what an earlier run of it has written is removed.
    ///
    /// # Errors
    /// If it cannot be removed.
    pub fn begin(&mut self, suite: &str) -> Result<()> {
        for kind in ["wrong", "declined"] {
            let directory = self.directory.join(format!("{kind}-{suite}"));
            if directory.exists() {
                fs::remove_dir_all(&directory).with_context(|| format!("cannot remove {}", directory.display()))?;
            }
        }
        self.suites.insert(suite.to_owned(), BTreeMap::new());
        Ok(())
    }

    /// Counts one request of a suite's part, a template or another.
    ///
    /// # Errors
    /// If a defect cannot be written.
    pub fn count(&mut self, suite: &str, part: &str, case: &Case, verdict: &Verdict) -> Result<()> {
        let tally = self.suites.entry(suite.to_owned()).or_default().entry(part.to_owned()).or_default();
        tally.count(verdict);
        let number = tally.requests;
        if *verdict != Verdict::Refused && case.transformers != case.vllm {
            tally.transformers_differs += 1;
        }
        let reasons = |why: &String| tally.reasons.get(why).copied().unwrap_or(0);
        match verdict {
            Verdict::Wrong(wrong) => self.defect(suite, &format!("{part}-{number}"), &case.body, wrong)?,
            Verdict::Declined(why) if reasons(why) <= EXAMPLES => {
                let Answer::Text(theirs) = &case.vllm else { return Ok(()) };
                let name = format!("{part}-{number}-{why}");
                self.write(
                    &format!("declined-{suite}"),
                    &name,
                    [("request.json", case.body.as_str()), ("theirs.txt", theirs)],
                )?;
            }
            _ => {}
        }
        Ok(())
    }

    fn defect(&mut self, suite: &str, name: &str, body: &str, wrong: &Wrong) -> Result<()> {
        let Wrong { ours, theirs } = wrong;
        let files = [("request.json", body), ("ours.txt", ours), ("theirs.txt", theirs)];
        let directory = self.write(&format!("wrong-{suite}"), name, files)?;
        self.defects.push(format!("{}/{name}.request.json\n    {}", directory.display(), wrong.difference()));
        Ok(())
    }

    /// Writes files of one request; returns their directory.
    fn write<'a>(
        &self,
        kind: &str,
        name: &str,
        files: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<PathBuf> {
        // Reasons may be whole sentences.
        let name: String = name.chars().take(100).map(|c| if c == '/' { '_' } else { c }).collect();
        let directory = self.directory.join(kind);
        fs::create_dir_all(&directory).with_context(|| format!("cannot create {}", directory.display()))?;
        for (extension, text) in files {
            let path = directory.join(format!("{name}.{extension}"));
            fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(directory)
    }

    /// Prints tables and defects.
    pub fn show(&self) {
        for (suite, parts) in &self.suites {
            let mut table = comfy_table::Table::new();
            table.load_preset(comfy_table::presets::UTF8_HORIZONTAL_ONLY);
            // Seventy rows need no lines between them.
            table.remove_style(TableComponent::HorizontalLines).remove_style(TableComponent::MiddleIntersections);
            table.set_header([suite.as_str(), "requests", "exact", "declined", "wrong", "refused", "why declined"]);
            let rows = parts.iter().map(|(part, tally)| (part.as_str(), tally.clone()));
            for (part, tally) in rows.chain([("all", sum(parts.values()))]) {
                let counts = [tally.requests, tally.exact, tally.declined, tally.wrong, tally.refused];
                let cells = counts.iter().map(usize::to_string);
                table.add_row([part.to_owned()].into_iter().chain(cells).chain([tally.why()]));
            }
            println!("{table}");
        }
        for defect in self.defects.iter().take(SHOWN) {
            println!("WRONG {defect}");
        }
        if self.defects.len() > SHOWN {
            println!("... and {} more in {}", self.defects.len() - SHOWN, self.directory.display());
        }
        if let Some(templates) = self.suites.get("templates") {
            let all = sum(templates.values());
            println!(
                "{} of {} templates are exact. transformers alone, given the messages as they are, differs from vLLM in \
                 {} of {} requests.",
                exact(templates),
                templates.len(),
                all.transformers_differs,
                all.requests - all.refused
            );
        }
    }

    /// All counts, for a JSON file.
    #[must_use]
    pub fn json(&self) -> Value {
        let none = BTreeMap::new();
        let templates = self.suites.get("templates").unwrap_or(&none);
        let all = sum(self.suites.values().flat_map(BTreeMap::values));
        let suites: BTreeMap<_, _> = self.suites.iter().map(|(suite, parts)| (suite, sum(parts.values()))).collect();
        let others: BTreeMap<_, _> = self.suites.iter().filter(|(suite, _)| *suite != "templates").collect();
        json!({
            "templates": templates.len(),
            "exact_templates": exact(templates),
            "requests": all.requests,
            "exact": all.exact,
            "declined": all.declined,
            "wrong": all.wrong,
            "refused": all.refused,
            "passed": self.complaints().is_empty(),
            "complaints": self.complaints(),
            "per_suite": suites,
            "per_template": templates,
            "per_part": others,
        })
    }

    /// What is not as it should be.
    #[must_use]
    pub fn complaints(&self) -> Vec<String> {
        let mut complaints = Vec::new();
        for (suite, parts) in &self.suites {
            let all = sum(parts.values());
            if all.wrong > 0 {
                complaints.push(format!("{} prompts of suite {suite} are wrong", all.wrong));
            }
            if all.exact == 0 {
                complaints.push(format!("suite {suite} has no exact prompt"));
            }
        }
        if let Some(templates) = self.suites.get("templates") {
            let exact = exact(templates);
            if exact + MAY_BE_DECLINED < templates.len() {
                complaints.push(format!("{exact} of {} templates are exact: too few", templates.len()));
            }
        }
        complaints
    }
}

fn sum<'a>(tallies: impl Iterator<Item = &'a Tally>) -> Tally {
    tallies.fold(Tally::default(), |mut all, tally| {
        all.add(tally);
        all
    })
}

fn exact(parts: &BTreeMap<String, Tally>) -> usize {
    parts.values().filter(|tally| tally.is_exact()).count()
}

/// Writes pretty JSON.
///
/// # Errors
/// If the file cannot be written.
pub fn write(path: &Path, json: &Value) -> Result<()> {
    let text = serde_json::to_string_pretty(json)? + "\n";
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}
