//! One table of a list.

use std::ops::RangeInclusive;

use super::value::{Raw, Refusal, Table};
use crate::display;

/// A table whose values are asked for one by one; asking is declaring. Each may be one value or a
/// list of them.
#[derive(Debug)]
pub struct Row<'a> {
    table: &'a Table,
    names: Vec<&'static str>,
    problems: Vec<(usize, String)>,
}

impl<'a> Row<'a> {
    pub(super) const fn new(table: &'a Table) -> Self {
        Self { table, names: Vec::new(), problems: Vec::new() }
    }

    /// The texts under a name, as `read` understands them; it says what is wrong with one.
    pub fn texts<T>(
        &mut self,
        name: &'static str,
        read: impl Fn(&str) -> Result<T, String>,
    ) -> Vec<T> {
        self.values(name, |raw| match raw {
            Raw::Text(_) => raw.text().map_or_else(
                |Refusal| Err("a text that is not empty is wanted".to_owned()),
                |text| read(&text),
            ),
            _ => Err("a text is wanted".to_owned()),
        })
    }

    /// The whole numbers under a name.
    pub fn integers(&mut self, name: &'static str, range: &RangeInclusive<u64>) -> Vec<u64> {
        let (least, most) = (range.start(), range.end());
        self.values(name, |raw| {
            match raw {
                Raw::Integer(_) => Some(raw).and_then(|raw| raw.integer(range).ok()),
                _ => None,
            }
            .ok_or_else(|| format!("a whole number from {least} to {most} is wanted"))
        })
    }

    /// Whether there is nothing in it.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.table.entries.is_empty()
    }

    /// Says what is wrong with the table as a whole.
    pub fn refuse(&mut self, message: impl Into<String>) {
        self.problems.push((self.table.line, message.into()));
    }

    fn values<T>(
        &mut self,
        name: &'static str,
        read: impl Fn(&Raw) -> Result<T, String>,
    ) -> Vec<T> {
        self.names.push(name);
        let Some((_, line, raws)) = self.table.entries.iter().find(|(key, ..)| key == name) else {
            return Vec::new();
        };
        if raws.is_empty() {
            self.problems.push((*line, format!("{name}: an empty list")));
        }
        let mut values = Vec::with_capacity(raws.len());
        for raw in raws {
            match read(raw) {
                Ok(value) => values.push(value),
                Err(why) => {
                    self.problems.push((*line, format!("{name}: {raw} is not allowed: {why}")));
                }
            }
        }
        values
    }

    /// What is wrong, with the lines; names that nobody asked for are.
    pub(super) fn finish(mut self) -> Vec<(usize, String)> {
        for (key, line, _) in &self.table.entries {
            if !self.names.iter().any(|name| name == key) {
                let (key, names) = (display::escape(key.as_bytes()), self.names.join(", "));
                self.problems.push((*line, format!("there is no {key} here; there are {names}")));
            }
        }
        self.problems.sort_by_key(|(line, _)| *line);
        self.problems
    }
}
