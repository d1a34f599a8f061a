//! Points in time as people give them on a command line.

use jiff::Timestamp;

/// Reads a point in time in nanoseconds since 1970: absolute (RFC 3339), or as an age at `now_ns`
/// (`30s`, `10m`, `2h`, `1d`). One beyond what fits is the nearest that does.
///
/// ```
/// use daemoneye_lib::since::parse_since;
///
/// assert_eq!(parse_since("1970-01-01T00:00:10Z", 0), Ok(10_000_000_000));
/// assert_eq!(parse_since("3s", 10_000_000_000), Ok(7_000_000_000));
/// ```
///
/// # Errors
/// A sentence for whoever typed something else.
pub fn parse_since(text: &str, now_ns: i64) -> Result<i64, String> {
    if let Some(age_ns) = parse_age(text) {
        return Ok(now_ns.saturating_sub(age_ns));
    }
    let time: Timestamp = text.parse().map_err(|_| {
        "neither a time like 2026-01-31T12:00:00Z nor an age like 30s, 10m, 2h or 1d".to_owned()
    })?;
    let beyond = if time.as_second() < 0 { i64::MIN } else { i64::MAX };
    Ok(i64::try_from(time.as_nanosecond()).unwrap_or(beyond))
}

/// `10m` and the like in nanoseconds; ages beyond what fits count as the longest that does.
fn parse_age(text: &str) -> Option<i64> {
    let seconds_each = match text.chars().last()? {
        's' => 1,
        'm' => 60,
        'h' => 3_600,
        'd' => 86_400,
        _ => return None,
    };
    let digits = &text[..text.len() - 1];
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let count = digits.parse::<i64>().unwrap_or(i64::MAX);
    Some(count.saturating_mul(seconds_each).saturating_mul(1_000_000_000))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_in_time_are_read_in_both_forms() {
        let second = 1_000_000_000;
        let now = 1_000_000 * second;
        assert_eq!(parse_since("30s", now), Ok(now - 30 * second));
        assert_eq!(parse_since("10m", now), Ok(now - 600 * second));
        assert_eq!(parse_since("2h", now), Ok(now - 7_200 * second));
        assert_eq!(parse_since("1d", now), Ok(now - 86_400 * second));
        assert_eq!(parse_since("1970-01-01T00:00:10Z", now), Ok(10 * second));
        assert_eq!(parse_since("1970-01-01T01:00:00.5+01:00", now), Ok(second / 2));
        for wrong in ["", "m", "-5m", "10", "10x", "yesterday", "5 m", "µs", "２h"] {
            assert!(parse_since(wrong, now).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn times_beyond_what_fits_are_the_nearest_that_do() {
        assert_eq!(parse_since("9999999999999999999d", 0), Ok(-i64::MAX));
        assert_eq!(parse_since("2500-01-01T00:00:00Z", 0), Ok(i64::MAX));
        assert_eq!(parse_since("1500-01-01T00:00:00Z", 0), Ok(i64::MIN));
    }
}
