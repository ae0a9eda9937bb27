//! What a client should be told about its request, in headers.

use axum::http::{HeaderMap, HeaderName, HeaderValue};

const WARNINGS: HeaderName = HeaderName::from_static("x-nucleus-warnings");

/// One header for each warning, in ASCII.
pub(crate) fn headers(warnings: &[String]) -> HeaderMap {
    let lines = warnings.iter().filter_map(|warning| {
        let ascii: String = warning
            .chars()
            .map(|c| if (' '..='~').contains(&c) { c } else { '?' })
            .collect();
        HeaderValue::try_from(ascii).ok()
    });
    lines.map(|line| (WARNINGS, line)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_are_ascii_lines_of_their_own() {
        let headers = headers(&["a: b".into(), "ü\r\nset-cookie: x".into()]);
        let lines: Vec<&[u8]> = headers
            .get_all(WARNINGS)
            .iter()
            .map(HeaderValue::as_bytes)
            .collect();
        assert_eq!(lines, [&b"a: b"[..], b"???set-cookie: x"]);
    }
}
