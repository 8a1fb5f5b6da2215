//! Tables for people.

/// Returns rows under their headings, every column as wide as its widest cell; the last one is not padded.
///
/// Cells may come from devices: what could move a terminal's cursor or reverse the text is shown as an escape.
pub(crate) fn table<const COLUMNS: usize>(headings: [&str; COLUMNS], rows: &[[String; COLUMNS]]) -> String {
    let rows: Vec<[String; COLUMNS]> = rows.iter().map(|row| row.each_ref().map(|cell| plain(cell))).collect();
    let mut widths = headings.map(|heading| heading.chars().count());
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for row in std::iter::once(headings.map(str::to_owned)).chain(rows) {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// Returns named values, one a line; those without a value are left out.
pub(crate) fn listing<const LINES: usize>(lines: [(&str, Option<String>); LINES]) -> String {
    let width = lines.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let mut text = String::new();
    for (name, value) in lines {
        if let Some(value) = value {
            text.push_str(&format!("{name:width$}  {}\n", plain(&value)));
        }
    }
    text
}

/// Returns text as a terminal may show it.
pub(crate) fn plain(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut plain, char| {
        match char {
            '"' | '\'' | '\\' => plain.push(char),
            _ => plain.extend(char.escape_debug()),
        }
        plain
    })
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[test]
    fn columns_are_aligned_and_device_data_cannot_write_to_the_terminal() {
        let rows = [
            ["1".to_owned(), "\u{1b}[2Jgone\r\n".to_owned(), "冷库 \"t1\"".to_owned()],
            ["1234".to_owned(), "\u{202e}txet".to_owned(), String::new()],
        ];
        expect![[r#"
            ID    TEXT               SENSOR
            1     \u{1b}[2Jgone\r\n  冷库 "t1"
            1234  \u{202e}txet
        "#]]
        .assert_eq(&table(["ID", "TEXT", "SENSOR"], &rows));
    }

    #[test]
    fn a_listing_leaves_out_what_is_not_known() {
        let text = listing([("id", Some("7".to_owned())), ("sensor", None), ("reason", Some("a\tb".to_owned()))]);
        expect![[r"
            id      7
            reason  a\tb
        "]]
        .assert_eq(&text);
    }
}
