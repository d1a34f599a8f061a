//! Topics and the patterns that select them.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The longest topic or pattern in bytes.
pub const TOPIC_BYTES_MAX: usize = 255;
/// The most segments a topic or pattern may have.
pub const TOPIC_SEGMENTS_MAX: usize = 8;

/// What a message is about: segments of `[a-z0-9_-]+` joined by dots, such as
/// `events.process.start`. At most 8 segments and 255 bytes. Cheap to clone.
///
/// ```
/// use daemoneye_eventbus::Topic;
/// let topic: Topic = "events.process.start".parse()?;
/// assert_eq!(topic.as_str(), "events.process.start");
/// assert!("Events.Process".parse::<Topic>().is_err());
/// # Ok::<(), daemoneye_eventbus::TopicError>(())
/// ```
#[derive(Clone, Eq, PartialOrd, Ord)]
pub struct Topic(Arc<str>);

/// Clones, the usual case, are found equal without looking at their text.
impl PartialEq for Topic {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.0 == other.0
    }
}

impl Hash for Topic {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}

/// Selects topics: like a topic, but a segment may be `*` (or `+`), which stands for exactly one
/// segment, and the last may be `#`, which stands for one or more.
///
/// ```
/// use daemoneye_eventbus::{Topic, TopicPattern};
/// let start: Topic = "events.process.start".parse()?;
/// assert!("events.process.*".parse::<TopicPattern>()?.matches(&start));
/// assert!("events.#".parse::<TopicPattern>()?.matches(&start));
/// assert!(!"events.*".parse::<TopicPattern>()?.matches(&start));
/// # Ok::<(), daemoneye_eventbus::TopicError>(())
/// ```
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TopicPattern(Arc<str>);

/// Why a text is not a topic or not a pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a valid topic or pattern: {problem}")]
pub struct TopicError {
    /// The text, cut to a printable length.
    text: String,
    problem: TopicProblem,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
enum TopicProblem {
    #[error("it is empty")]
    Empty,
    #[error("it is longer than {TOPIC_BYTES_MAX} bytes")]
    TooLong,
    #[error("it has more than {TOPIC_SEGMENTS_MAX} segments")]
    TooManySegments,
    #[error("a segment is empty")]
    EmptySegment,
    #[error("segments consist of a-z, 0-9, '_' and '-'")]
    BadCharacter,
    #[error("'#' is allowed only as the last segment")]
    HashNotLast,
}

impl Topic {
    /// Checks `text` and makes it a topic.
    pub fn new(text: &str) -> Result<Self, TopicError> {
        check(text, is_plain_segment)?;
        Ok(Self(text.into()))
    }

    /// The topic as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TopicPattern {
    /// Checks `text` and makes it a pattern. `+` is kept as `*`, which means the same.
    pub fn new(text: &str) -> Result<Self, TopicError> {
        check(text, |segment, last| match segment {
            "*" | "+" => Ok(()),
            "#" if last => Ok(()),
            "#" => Err(TopicProblem::HashNotLast),
            _ => is_plain_segment(segment, last),
        })?;
        // '+' can only stand as a whole segment here, so replacing the character is enough.
        Ok(Self(text.replace('+', "*").into()))
    }

    /// The pattern as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether `topic` is selected.
    #[must_use]
    pub fn matches(&self, topic: &Topic) -> bool {
        let mut segments = topic.0.split('.');
        for wanted in self.0.split('.') {
            match (wanted, segments.next()) {
                ("#", Some(_)) => return true,
                ("*", Some(_)) => {}
                (wanted, Some(segment)) if wanted == segment => {}
                _ => return false,
            }
        }
        segments.next().is_none()
    }
}

/// A topic selects exactly itself.
impl From<&Topic> for TopicPattern {
    fn from(topic: &Topic) -> Self {
        Self(Arc::clone(&topic.0))
    }
}

fn check(
    text: &str,
    segment_ok: impl Fn(&str, bool) -> Result<(), TopicProblem>,
) -> Result<(), TopicError> {
    let problem = if text.is_empty() {
        TopicProblem::Empty
    } else if text.len() > TOPIC_BYTES_MAX {
        TopicProblem::TooLong
    } else {
        let count = text.split('.').count();
        if count > TOPIC_SEGMENTS_MAX {
            TopicProblem::TooManySegments
        } else {
            match text
                .split('.')
                .enumerate()
                .try_for_each(|(at, segment)| segment_ok(segment, at + 1 == count))
            {
                Ok(()) => return Ok(()),
                Err(problem) => problem,
            }
        }
    };
    Err(TopicError { text: text.chars().take(64).collect(), problem })
}

fn is_plain_segment(segment: &str, _last: bool) -> Result<(), TopicProblem> {
    if segment.is_empty() {
        return Err(TopicProblem::EmptySegment);
    }
    if segment.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-')) {
        Ok(())
    } else {
        Err(TopicProblem::BadCharacter)
    }
}

/// Whether `text` could stand as one segment of a topic, as client ids and consumer names must.
pub(crate) fn is_segment(text: &str) -> bool {
    is_plain_segment(text, true).is_ok()
}

macro_rules! text_like {
    ($name:ident) => {
        impl FromStr for $name {
            type Err = TopicError;

            fn from_str(text: &str) -> Result<Self, TopicError> {
                Self::new(text)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                Self::new(&text).map_err(serde::de::Error::custom)
            }
        }
    };
}

text_like!(Topic);
text_like!(TopicPattern);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_are_checked() {
        let cases: &[(&str, Option<TopicProblem>)] = &[
            ("events", None),
            ("events.process.start", None),
            ("control.collector.procmond-1_x", None),
            ("a.b.c.d.e.f.g.h", None),
            ("", Some(TopicProblem::Empty)),
            ("a..b", Some(TopicProblem::EmptySegment)),
            (".a", Some(TopicProblem::EmptySegment)),
            ("a.", Some(TopicProblem::EmptySegment)),
            ("a.b.c.d.e.f.g.h.i", Some(TopicProblem::TooManySegments)),
            ("Events", Some(TopicProblem::BadCharacter)),
            ("events.*", Some(TopicProblem::BadCharacter)),
            ("events.#", Some(TopicProblem::BadCharacter)),
            ("events process", Some(TopicProblem::BadCharacter)),
            ("events.\u{1b}[2J", Some(TopicProblem::BadCharacter)),
            ("évents", Some(TopicProblem::BadCharacter)),
        ];
        for (text, problem) in cases {
            assert_eq!(Topic::new(text).err().map(|e| e.problem), *problem, "{text:?}");
        }
        let longest = "x".repeat(TOPIC_BYTES_MAX);
        assert!(Topic::new(&longest).is_ok());
        assert_eq!(Topic::new(&(longest + "x")).unwrap_err().problem, TopicProblem::TooLong);
    }

    #[test]
    fn patterns_are_checked() {
        for good in ["#", "*", "+", "events.#", "events.*.start", "*.*", "a.b", "a.+.#"] {
            assert!(TopicPattern::new(good).is_ok(), "{good}");
        }
        for bad in ["", "#.a", "a.#.b", "a*", "a.b#", "a.**", "##", "a.", "A.*", "*+"] {
            assert!(TopicPattern::new(bad).is_err(), "{bad}");
        }
        assert_eq!(TopicPattern::new("a.+.b").unwrap(), TopicPattern::new("a.*.b").unwrap());
    }

    #[test]
    fn patterns_select_as_documented() {
        let cases: &[(&str, &str, bool)] = &[
            ("events.process.start", "events.process.start", true),
            ("events.process.start", "events.process.stop", false),
            ("events.process.*", "events.process.start", true),
            ("events.process.+", "events.process.start", true),
            ("events.process.*", "events.process", false),
            ("events.process.*", "events.process.start.x", false),
            ("events.*", "events.process.start", false),
            ("*.process.*", "events.process.start", true),
            ("events.#", "events.process.start", true),
            ("events.#", "events.process", true),
            ("events.#", "events", false),
            ("#", "events", true),
            ("#", "events.process.start", true),
            ("*.#", "events", false),
            ("*.#", "events.process", true),
            ("event.#", "events.process", false),
            ("events.process.start", "events.process", false),
        ];
        for (pattern, topic, selected) in cases {
            let (p, t) = (TopicPattern::new(pattern).unwrap(), Topic::new(topic).unwrap());
            assert_eq!(p.matches(&t), *selected, "{pattern} {topic}");
        }
    }

    #[test]
    fn errors_show_no_control_characters() {
        let error = Topic::new("a\u{1b}[31m\nb").unwrap_err();
        assert!(!error.to_string().chars().any(char::is_control));
    }
}
