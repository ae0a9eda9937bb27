//! Columns of text.

/// Where a column's cells stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Align {
    Left,
    Right,
}

/// A table being filled: a header and rows of as many cells.
#[derive(Debug)]
pub(crate) struct Table<const N: usize> {
    align: [Align; N],
    rows: Vec<[String; N]>,
}

impl<const N: usize> Table<N> {
    /// A table with nothing but a header.
    pub(crate) fn new(columns: [(&str, Align); N]) -> Self {
        Self {
            align: columns.map(|(_, align)| align),
            rows: vec![columns.map(|(name, _)| name.to_owned())],
        }
    }

    /// Adds a row.
    pub(crate) fn push(&mut self, cells: [String; N]) {
        self.rows.push(cells);
    }

    /// The lines, indented, columns parted by two spaces, without trailing spaces; ends with a line feed.
    pub(crate) fn render(&self, indent: usize) -> String {
        let widths: [usize; N] = std::array::from_fn(|i| {
            self.rows
                .iter()
                .map(|row| row[i].chars().count())
                .max()
                .unwrap_or(0)
        });
        let line = |row: &[String; N]| {
            let cells: Vec<String> = (0..N)
                .map(|i| pad(&row[i], widths[i], self.align[i]))
                .collect();
            format!("{:indent$}{}", "", cells.join("  "))
                .trim_end()
                .to_owned()
                + "\n"
        };
        self.rows.iter().map(line).collect()
    }
}

fn pad(cell: &str, width: usize, align: Align) -> String {
    match align {
        Align::Left => format!("{cell:<width$}"),
        Align::Right => format!("{cell:>width$}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let mut table = Table::new([
            ("name", Align::Left),
            ("n", Align::Right),
            ("", Align::Left),
        ]);
        table.push(["top_k".into(), "40".into(), "x".into()]);
        table.push(["p".into(), "1000".into(), String::new()]);
        assert_eq!(
            table.render(2),
            "  name      n\n  top_k    40  x\n  p      1000\n"
        );
    }
}
