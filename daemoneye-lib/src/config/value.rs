//! Values as they were written, and their reading.

use std::borrow::Cow;
use std::ffi::OsString;
use std::fmt;
use std::ops::RangeInclusive;
use std::path::PathBuf;

use crate::display;

/// A value as it was written.
#[derive(Clone, Debug)]
pub(super) enum Raw {
    /// From the environment, a flag, or a text in the file.
    Text(OsString),
    /// A whole number in the file.
    Integer(i128),
    /// A yes or no in the file.
    Boolean(bool),
    /// A list of tables in the file.
    Tables(Vec<Table>),
    /// Something no option takes.
    Other(String),
}

/// One table of a list.
#[derive(Clone, Debug)]
pub(super) struct Table {
    /// Where it begins, counted from 1.
    pub(super) line: usize,
    /// A name, its line, and its value or values.
    pub(super) entries: Vec<(String, usize, Vec<Raw>)>,
}

/// The value is not one that the option takes.
#[derive(Debug)]
pub(super) struct Refusal;

impl Raw {
    pub(super) fn text(&self) -> Result<String, Refusal> {
        let Self::Text(text) = self else { return Err(Refusal) };
        text.to_str().filter(|text| !text.is_empty()).map(str::to_owned).ok_or(Refusal)
    }

    pub(super) fn path(&self) -> Result<PathBuf, Refusal> {
        match self {
            Self::Text(text) if !text.is_empty() => Ok(PathBuf::from(text)),
            _ => Err(Refusal),
        }
    }

    pub(super) fn boolean(&self) -> Result<bool, Refusal> {
        match self {
            Self::Boolean(boolean) => Ok(*boolean),
            _ => self.text()?.parse().map_err(|_| Refusal),
        }
    }

    /// From the environment, the list is written as in the file.
    pub(super) fn tables(&self) -> Result<Cow<'_, [Table]>, Refusal> {
        match self {
            Self::Tables(tables) => Ok(Cow::Borrowed(tables)),
            Self::Text(text) => match super::file::read_value(text.to_str().ok_or(Refusal)?) {
                Some(Self::Tables(tables)) => Ok(Cow::Owned(tables)),
                _ => Err(Refusal),
            },
            _ => Err(Refusal),
        }
    }

    pub(super) fn integer(&self, range: &RangeInclusive<u64>) -> Result<u64, Refusal> {
        let number = match self {
            Self::Integer(number) => u64::try_from(*number).map_err(|_| Refusal)?,
            _ => self.text()?.trim().parse().map_err(|_| Refusal)?,
        };
        within(number, range)
    }

    pub(super) fn bytes(&self, range: &RangeInclusive<u64>) -> Result<u64, Refusal> {
        if let Self::Integer(_) = self {
            return self.integer(range);
        }
        let text = self.text()?;
        let text = text.trim();
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let number: u64 = text[..digits].parse().map_err(|_| Refusal)?;
        let unit: u64 = match text[digits..].trim_start() {
            "" | "B" => 1,
            "kB" | "KB" => 1_000,
            "MB" => 1_000_000,
            "GB" => 1_000_000_000,
            "KiB" => 1 << 10,
            "MiB" => 1 << 20,
            "GiB" => 1 << 30,
            _ => return Err(Refusal),
        };
        within(number.checked_mul(unit).ok_or(Refusal)?, range)
    }
}

fn within(number: u64, range: &RangeInclusive<u64>) -> Result<u64, Refusal> {
    if range.contains(&number) { Ok(number) } else { Err(Refusal) }
}

impl fmt::Display for Raw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => {
                // A value may be long: enough of it to be recognised.
                let shown = display::escape(text.as_encoded_bytes()).to_string();
                let cut: String = shown.chars().take(80).collect();
                let more = if cut.len() < shown.len() { "..." } else { "" };
                write!(f, "\"{cut}{more}\"")
            }
            Self::Integer(number) => number.fmt(f),
            Self::Boolean(boolean) => boolean.fmt(f),
            Self::Tables(_) => f.write_str("a list of tables"),
            Self::Other(text) => f.write_str(text),
        }
    }
}
