//! Durations and sizes as people write them.

/// Parses `250ms`, `90s`, `5m`, `24h` or `7d` into milliseconds.
pub fn parse_duration_ms(text: &str) -> Result<i64, String> {
    let text = text.trim();
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(split);
    let factor: i64 = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => {
            return Err(format!("expected a duration such as 250ms, 90s, 5m, 24h or 7d, found `{text}`"));
        }
    };
    let count: i64 = digits.parse().map_err(|_| format!("expected a whole number before `{unit}`, found `{text}`"))?;
    count.checked_mul(factor).ok_or_else(|| format!("`{text}` is too long a duration"))
}

/// Parses `512`, `64KiB`, `64MiB` or `2GiB` into bytes.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(split);
    let factor: u64 = match unit {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        _ => {
            return Err(format!("expected a size such as 512KiB, 64MiB or 2GiB, found `{text}`"));
        }
    };
    let count: u64 = digits.parse().map_err(|_| format!("expected a whole number before `{unit}`, found `{text}`"))?;
    count.checked_mul(factor).ok_or_else(|| format!("`{text}` is too large a size"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_sizes_read_as_written() {
        assert_eq!(parse_duration_ms("250ms"), Ok(250));
        assert_eq!(parse_duration_ms("7d"), Ok(7 * 86_400_000));
        assert_eq!(parse_duration_ms("0s"), Ok(0));
        assert_eq!(parse_size("64MiB"), Ok(64 << 20));
        for wrong in ["", "5", "m", "-5m", "1.5h", "5 m", "99999999999999999d"] {
            assert!(parse_duration_ms(wrong).is_err(), "{wrong}");
        }
        assert!(parse_size("5MB").is_err());
    }
}
