//! What a client should be told about its request, in headers.

use axum::http::{HeaderMap, HeaderName, HeaderValue};

const WARNINGS: HeaderName = HeaderName::from_static("x-nucleus-warnings");

/// How many warnings a response has. Clients refuse a response with many headers: Python's and hyper's with more than 100.
const MAX_LINES: usize = 32;

/// Bytes of all of a response's warnings. Clients refuse long heads: Node's with more than 16 KiB.
const MAX_BYTES: usize = 4096;

/// One header for each warning, in ASCII; as many as clients can take, and how many more there are.
pub(crate) fn headers(warnings: &[String]) -> HeaderMap {
    let mut bytes = 0;
    let lines = warnings.iter().map(|warning| ascii(warning));
    let mut lines: Vec<String> = lines
        .take(MAX_LINES)
        .take_while(|line| {
            bytes += line.len();
            bytes <= MAX_BYTES
        })
        .collect();
    let more = warnings.len() - lines.len();
    if more > 0 {
        lines.push(format!("{more} more warnings"));
    }
    let values = lines
        .into_iter()
        .filter_map(|line| HeaderValue::try_from(line).ok());
    values.map(|value| (WARNINGS, value)).collect()
}

fn ascii(text: &str) -> String {
    text.chars()
        .map(|c| if (' '..='~').contains(&c) { c } else { '?' })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(warnings: &[String]) -> Vec<String> {
        let headers = headers(warnings);
        let lines = headers.get_all(WARNINGS).iter();
        lines
            .map(|line| line.to_str().expect("ASCII").to_owned())
            .collect()
    }

    #[test]
    fn warnings_are_ascii_lines_of_their_own() {
        let warnings = ["a: b".into(), "ü\r\nset-cookie: x".into()];
        assert_eq!(lines(&warnings), ["a: b", "???set-cookie: x"]);
    }

    #[test]
    fn there_are_no_more_than_clients_can_take() {
        let numbered: Vec<String> = (0..MAX_LINES + 1).map(|i| i.to_string()).collect();
        assert_eq!(lines(&numbered[1..]), numbered[1..]);
        let bounded = lines(&numbered);
        assert_eq!(bounded[..MAX_LINES], numbered[..MAX_LINES]);
        assert_eq!(bounded[MAX_LINES..], ["1 more warnings"]);

        let long = ["a".repeat(MAX_BYTES / 2), "b".repeat(MAX_BYTES / 2)];
        assert_eq!(lines(&long), long);
        let longer = [long.as_slice(), &["c".into(), "d".into()]].concat();
        assert_eq!(lines(&longer)[..2], long);
        assert_eq!(lines(&longer)[2..], ["2 more warnings"]);
    }
}
