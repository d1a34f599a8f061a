//! The entries of a TOML file and the lines they are on.

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::value::{Raw, Table};
use crate::display;

/// One thing found in the file.
pub(super) struct Entry {
    /// Counted from 1.
    pub(super) line: usize,
    /// A `section.key` and its value, or what is wrong.
    pub(super) content: Result<(String, Raw), String>,
}

/// All entries and all mistakes in form.
pub(super) fn read(text: &str) -> Vec<Entry> {
    let line_at = |at: usize| line_at(text, at);
    let (table, errors) = DeTable::parse_recoverable(text);
    let mut entries: Vec<Entry> = errors
        .iter()
        .map(|error| Entry {
            line: line_at(error.span().map_or(0, |span| span.start)),
            content: Err(format!("not TOML: {}", display::escape(error.message().as_bytes()))),
        })
        .collect();
    if !entries.is_empty() {
        // What was recovered from a broken text may not be what was meant.
        return entries;
    }
    for (section, value) in table.get_ref() {
        let line = line_at(section.span().start);
        let DeValue::Table(options) = value.get_ref() else {
            let name = display::escape(section.get_ref().as_bytes());
            let message = format!("{name} stands outside a section; write it below its [section]");
            entries.push(Entry { line, content: Err(message) });
            continue;
        };
        for (key, value) in options {
            let line = line_at(key.span().start);
            let key = format!("{}.{}", section.get_ref(), key.get_ref());
            entries.push(Entry { line, content: Ok((key, raw(text, value))) });
        }
    }
    entries.sort_by_key(|entry| entry.line);
    entries
}

/// One value, written as in a file.
pub(super) fn read_value(text: &str) -> Option<Raw> {
    let text = format!("value = {text}");
    let table = DeTable::parse(&text).ok()?;
    let table = table.get_ref();
    // More than one: the text was not a value and nothing else.
    if table.len() == 1 { table.values().next().map(|value| raw(&text, value)) } else { None }
}

fn raw(text: &str, value: &Spanned<DeValue<'_>>) -> Raw {
    match value.get_ref() {
        DeValue::String(string) => Raw::Text(string.as_ref().into()),
        DeValue::Integer(number) => i128::from_str_radix(number.as_str(), number.radix())
            .map_or_else(|_| Raw::Other("a number too large to read".to_owned()), Raw::Integer),
        DeValue::Boolean(boolean) => Raw::Boolean(*boolean),
        DeValue::Float(number) => Raw::Other(number.as_str().to_owned()),
        DeValue::Array(array) => array
            .iter()
            .map(|element| table(text, element))
            .collect::<Option<_>>()
            .map_or_else(|| Raw::Other("a value of type array".to_owned()), Raw::Tables),
        other => Raw::Other(format!("a value of type {}", other.type_str())),
    }
}

fn table(text: &str, value: &Spanned<DeValue<'_>>) -> Option<Table> {
    let DeValue::Table(entries) = value.get_ref() else { return None };
    let entries = entries.iter().map(|(name, value)| {
        let values = match value.get_ref() {
            DeValue::Array(values) => values.iter().map(|value| raw(text, value)).collect(),
            _ => vec![raw(text, value)],
        };
        (name.get_ref().to_string(), line_at(text, name.span().start), values)
    });
    Some(Table { line: line_at(text, value.span().start), entries: entries.collect() })
}

fn line_at(text: &str, at: usize) -> usize {
    let before = &text.as_bytes()[..at.min(text.len())];
    before.iter().filter(|byte| **byte == b'\n').count() + 1
}
