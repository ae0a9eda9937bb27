//! Writes a grammar over lexemes as a Lark grammar, its lexemes as regular expressions.

use std::fmt::Write;

use super::grammar::{Class, Facts, Grammar, Node, NodeId};
use super::lexemes::{Part, Plan};
use super::{GbnfError, MAX_LARK_BYTES};

pub(super) fn write(grammar: &Grammar, facts: &Facts, plan: &Plan) -> Result<String, GbnfError> {
    let mut writer = Writer {
        grammar,
        facts,
        out: String::new(),
    };
    writer.put(format_args!("start: r{}\n", grammar.root));
    for (rule, part) in &plan.rules {
        writer.put(format_args!("r{rule}: "));
        writer.part(part);
        writer.out.push('\n');
    }
    for (index, nodes) in plan.lexemes.iter().enumerate() {
        writer.put(format_args!("T{index}: /"));
        match nodes[..] {
            [node] => writer.not_empty(node),
            _ => nodes.iter().for_each(|&node| writer.regex(node)),
        }
        writer.out.push_str("/\n");
    }
    match writer.out.len() {
        0..=MAX_LARK_BYTES => Ok(writer.out),
        _ => Err(GbnfError::TooLarge),
    }
}

struct Writer<'a> {
    grammar: &'a Grammar,
    facts: &'a Facts,
    out: String,
}

impl Writer<'_> {
    fn put(&mut self, text: std::fmt::Arguments<'_>) {
        self.out.write_fmt(text).expect("a string takes all");
    }

    fn part(&mut self, part: &Part) {
        match part {
            Part::Lexeme { lexeme, optional } => {
                self.put(format_args!(
                    "T{lexeme}{}",
                    if *optional { "?" } else { "" }
                ));
            }
            Part::Rule(rule) => self.put(format_args!("r{rule}")),
            Part::Sequence(parts) if parts.is_empty() => self.out.push_str("\"\""),
            Part::Sequence(parts) => self.group("(", parts, " ", Self::part),
            Part::Choice(parts) => self.group("(", parts, " | ", Self::part),
            Part::Repeat { part, min, max } => {
                self.group("(", [&**part], "", Self::part);
                self.repetition(*min, *max);
            }
        }
    }

    /// A regular expression for the texts of a node.
    fn regex(&mut self, id: NodeId) {
        let grammar = self.grammar;
        match &grammar.nodes[id] {
            Node::Class(class) => self.class(class),
            Node::Sequence(nodes) => nodes.iter().for_each(|&node| self.regex(node)),
            Node::Choice(nodes) => {
                self.group("(?:", nodes, "|", |writer, &node| writer.regex(node));
            }
            Node::Repeat { node, min, max } => {
                self.group("(?:", [node], "", |writer, &node| writer.regex(node));
                self.repetition(*min, *max);
            }
            Node::Rule(rule) => self.regex(grammar.rules[*rule].body),
        }
    }

    /// The same without the empty text, for nodes that [can be a lexeme](super::lexemes) alone.
    fn not_empty(&mut self, id: NodeId) {
        if !self.facts.nullable[id] {
            return self.regex(id);
        }
        let grammar = self.grammar;
        match &grammar.nodes[id] {
            Node::Class(class) => self.class(class),
            Node::Sequence(nodes) => nodes.iter().for_each(|&node| self.not_empty(node)),
            Node::Choice(nodes) => {
                let left = nodes.iter().filter(|&&node| !grammar.is_empty(node));
                self.group("(?:", left, "|", |writer, &node| writer.not_empty(node));
            }
            Node::Repeat { node, max, .. } => {
                self.group("(?:", [*node], "", Self::not_empty);
                self.repetition(1, *max);
            }
            Node::Rule(rule) => self.not_empty(grammar.rules[*rule].body),
        }
    }

    fn group<T>(
        &mut self,
        open: &str,
        items: impl IntoIterator<Item = T>,
        between: &str,
        write: impl Fn(&mut Self, T),
    ) {
        self.out.push_str(open);
        for (index, item) in items.into_iter().enumerate() {
            self.out.push_str(if index == 0 { "" } else { between });
            write(self, item);
        }
        self.out.push(')');
    }

    fn repetition(&mut self, min: u32, max: Option<u32>) {
        match (min, max) {
            (0, None) => self.out.push('*'),
            (1, None) => self.out.push('+'),
            (0, Some(1)) => self.out.push('?'),
            (1, Some(1)) => {}
            (min, None) => self.put(format_args!("{{{min},}}")),
            (min, Some(max)) => self.put(format_args!("{{{min},{max}}}")),
        }
    }

    fn class(&mut self, class: &Class) {
        let escaped = |character: char| match character {
            character if character.is_ascii_alphanumeric() => character.to_string(),
            character => format!("\\x{{{:x}}}", u32::from(character)),
        };
        match class.ranges() {
            [(first, last)] if first == last => self.out.push_str(&escaped(*first)),
            ranges => {
                self.out.push('[');
                for (first, last) in ranges {
                    self.put(format_args!("{}-{}", escaped(*first), escaped(*last)));
                }
                self.out.push(']');
            }
        }
    }
}
