//! Every requirement of `docs/requirements.md` has the tests that its row asks for.
//!
//! A test names a requirement in its function's name (`r1_2_…`) or in the comment above it (`R1.2`), a case of
//! `testdata/sampling/` anywhere in its `[[case]]` table.

use std::fs;
use std::path::{Path, PathBuf};

/// A row of the table: the id and how many tests must name it.
#[derive(Debug, PartialEq)]
struct Requirement {
    id: String,
    at_least: usize,
}

/// The rows of the Markdown table: the lines that begin with an id.
fn requirements(page: &str) -> Vec<Requirement> {
    page.lines()
        .filter(|line| line.starts_with("| R"))
        .map(requirement)
        .collect()
}

/// `| id | requirement | at least |`.
fn requirement(line: &str) -> Requirement {
    let cells: Vec<&str> = line.split('|').map(str::trim).collect();
    let [_, id, _, at_least, _] = cells[..] else {
        panic!("not three cells: {line}");
    };
    Requirement {
        id: id.to_owned(),
        at_least: at_least.parse().expect(line),
    }
}

/// Whether `text` holds `id` as a whole: `R1.1` is not in `R1.10`.
fn names(text: &str, id: &str) -> bool {
    text.match_indices(id)
        .any(|(at, _)| !text[at + id.len()..].starts_with(|next: char| next.is_ascii_digit()))
}

/// What names each test of a Rust source: the comments above its function, and the function's line.
fn rust_tests(source: &str) -> Vec<String> {
    let mut tests = Vec::new();
    let mut heading = Vec::new();
    for line in source.lines().map(str::trim) {
        let is_heading = line.starts_with("//") || line.starts_with("#[");
        if is_heading {
            heading.push(line);
            continue;
        }
        let is_test = heading
            .iter()
            .any(|line| line.starts_with("#[test]") || line.starts_with("#[tokio::test"));
        if is_test && line.contains("fn ") {
            tests.push(format!("{}\n{line}", heading.join("\n")));
        }
        heading.clear();
    }
    tests
}

/// The cases of a corpus file.
fn corpus_cases(source: &str) -> Vec<String> {
    source
        .split("[[case]]")
        .skip(1)
        .map(str::to_owned)
        .collect()
}

fn is_named(test: &str, id: &str) -> bool {
    names(test, id) || names(test, &id.to_lowercase().replace('.', "_"))
}

/// The files below `folder`, without build output.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries =
        fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    entries
        .map(|entry| entry.unwrap().path())
        .filter(|path| !path.ends_with("target"))
        .flat_map(|path| {
            if path.is_dir() {
                files(&path)
            } else {
                vec![path]
            }
        })
        .collect()
}

fn tests_of(path: &Path) -> Vec<String> {
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("rs") => rust_tests(&fs::read_to_string(path).unwrap()),
        Some("toml") => corpus_cases(&fs::read_to_string(path).unwrap()),
        _ => Vec::new(),
    }
}

#[test]
fn every_requirement_has_its_tests() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join("docs/requirements.md")).unwrap();
    let tests: Vec<String> = ["src", "crates", "tests", "testdata"]
        .iter()
        .flat_map(|folder| files(&root.join(folder)))
        .flat_map(|path| tests_of(&path))
        .collect();

    let requirements = requirements(&page);
    assert!(!requirements.is_empty(), "the table has no rows");
    for Requirement { id, at_least } in requirements {
        let found = tests.iter().filter(|test| is_named(test, &id)).count();
        assert!(
            found >= at_least,
            "{found} tests name {id}; the table asks for {at_least}"
        );
    }
}

#[test]
fn a_row_of_the_table_is_an_id_and_a_number() {
    let page = "| id | requirement | tests |\n|---|---|---|\n| R1.2 | top-k | 5 |\n";
    assert_eq!(
        requirements(page),
        [Requirement {
            id: "R1.2".to_owned(),
            at_least: 5
        }]
    );
}

#[test]
fn a_test_is_named_by_its_comment_or_its_function() {
    let source = "/// R1.1: one.\n#[test]\nfn one() {}\n\n#[tokio::test]\nasync fn r1_1_two() {}\n\n/// R1.1: no test.\nfn three() {}\n";
    let tests = rust_tests(source);
    assert_eq!(
        tests.iter().filter(|test| is_named(test, "R1.1")).count(),
        2
    );
    assert!(!is_named("R1.10", "R1.1"));
}
