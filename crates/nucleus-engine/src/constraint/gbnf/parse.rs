//! Reads GBNF.

use std::collections::HashMap;

use super::grammar::{Class, Grammar, Node, NodeId, Rule, RuleId};
use super::{GbnfError, MAX_REPETITION, ROOT};

/// Whether a character may be in the name of a rule.
pub(super) fn is_name(character: char) -> bool {
    character.is_ascii_alphanumeric() || character == '-' || character == '_'
}

pub(super) fn parse(text: &str) -> Result<Grammar, GbnfError> {
    let mut parser = Parser {
        text,
        at: 0,
        nodes: Vec::new(),
        rules: Vec::new(),
        by_name: HashMap::new(),
    };
    parser.space(Lines::Any);
    while !parser.rest().is_empty() {
        parser.rule()?;
        parser.space(Lines::Any);
    }
    parser.grammar()
}

/// Whether the end of a line is space.
#[derive(Clone, Copy, PartialEq)]
enum Lines {
    One,
    Any,
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
    nodes: Vec<Node>,
    rules: Vec<Named>,
    by_name: HashMap<&'a str, RuleId>,
}

/// A rule that has been named.
struct Named {
    name: String,
    /// Where it was first named.
    at: usize,
    body: Option<NodeId>,
}

impl<'a> Parser<'a> {
    fn grammar(self) -> Result<Grammar, GbnfError> {
        let line = |at| line_of(self.text, at);
        let mut rules = Vec::with_capacity(self.rules.len());
        for Named { name, at, body } in self.rules {
            match body {
                Some(body) => rules.push(Rule { name, body }),
                None => {
                    return Err(GbnfError::Undefined {
                        line: line(at),
                        name,
                    });
                }
            }
        }
        let root = self.by_name.get(ROOT).ok_or(GbnfError::NoRoot)?;
        Ok(Grammar {
            nodes: self.nodes,
            rules,
            root: *root,
        })
    }

    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    /// Whether this comes next; then it is read.
    fn take(&mut self, expected: &str) -> bool {
        let taken = self.rest().starts_with(expected);
        self.at += if taken { expected.len() } else { 0 };
        taken
    }

    fn take_while(&mut self, wanted: impl Fn(char) -> bool) -> &'a str {
        let rest = self.rest();
        let end = rest.find(|character| !wanted(character));
        let taken = &rest[..end.unwrap_or(rest.len())];
        self.at += taken.len();
        taken
    }

    /// Passes white space and comments.
    fn space(&mut self, lines: Lines) {
        loop {
            self.take_while(|character| match character {
                ' ' | '\t' => true,
                '\r' | '\n' => lines == Lines::Any,
                _ => false,
            });
            if self.peek() != Some('#') {
                return;
            }
            self.take_while(|character| !matches!(character, '\r' | '\n'));
        }
    }

    fn line(&self) -> usize {
        line_of(self.text, self.at)
    }

    fn unexpected(&self, expected: &'static str) -> GbnfError {
        let found = match self.peek() {
            None => "the end of the grammar".into(),
            Some('\r' | '\n') => "the end of the line".into(),
            Some(character) => format!("{character:?}"),
        };
        GbnfError::Unexpected {
            line: self.line(),
            found,
            expected,
        }
    }

    fn push(&mut self, node: Node) -> NodeId {
        self.nodes.push(node);
        self.nodes.len() - 1
    }

    fn name(&mut self) -> Result<RuleId, GbnfError> {
        let at = self.at;
        let name = self.take_while(is_name);
        if name.is_empty() {
            return Err(self.unexpected("the name of a rule"));
        }
        let rules = &mut self.rules;
        Ok(*self.by_name.entry(name).or_insert_with(|| {
            let name = name.to_owned();
            rules.push(Named {
                name,
                at,
                body: None,
            });
            rules.len() - 1
        }))
    }

    fn rule(&mut self) -> Result<(), GbnfError> {
        let line = self.line();
        let rule = self.name()?;
        self.space(Lines::One);
        if !self.take("::=") {
            return Err(self.unexpected("\"::=\""));
        }
        self.space(Lines::Any);
        let body = self.choice(Lines::One)?;
        if !matches!(self.peek(), None | Some('\r' | '\n')) {
            return Err(self.unexpected("the next part of a rule or the end of the line"));
        }
        let named = &mut self.rules[rule];
        match named.body.replace(body) {
            None => Ok(()),
            Some(_) => Err(GbnfError::Twice {
                line,
                name: named.name.clone(),
            }),
        }
    }

    fn choice(&mut self, lines: Lines) -> Result<NodeId, GbnfError> {
        let mut alternatives = vec![self.sequence(lines)?];
        while self.take("|") {
            self.space(Lines::Any);
            alternatives.push(self.sequence(lines)?);
        }
        Ok(match alternatives[..] {
            [only] => only,
            _ => self.push(Node::Choice(alternatives)),
        })
    }

    fn sequence(&mut self, lines: Lines) -> Result<NodeId, GbnfError> {
        let mut items = Vec::new();
        while let Some(mut item) = self.item()? {
            self.space(lines);
            while let Some((min, max)) = self.repetition()? {
                item = match max {
                    Some(0) => self.push(Node::Sequence(Vec::new())),
                    _ => self.push(Node::Repeat {
                        node: item,
                        min,
                        max,
                    }),
                };
                self.space(lines);
            }
            items.push(item);
        }
        Ok(self.in_sequence(items))
    }

    fn in_sequence(&mut self, items: Vec<NodeId>) -> NodeId {
        match items[..] {
            [only] => only,
            _ => self.push(Node::Sequence(items)),
        }
    }

    /// What a repetition may follow; nothing where a sequence ends.
    fn item(&mut self) -> Result<Option<NodeId>, GbnfError> {
        let node = match self.peek() {
            Some('"') => self.literal()?,
            Some('[') => self.class()?,
            Some('(') => self.group()?,
            Some('.') => {
                self.at += 1;
                self.push(Node::Class(Class::any()))
            }
            Some('<' | '!') => return Err(GbnfError::Token { line: self.line() }),
            Some(character) if is_name(character) => {
                let rule = self.name()?;
                self.push(Node::Rule(rule))
            }
            _ => return Ok(None),
        };
        Ok(Some(node))
    }

    fn group(&mut self) -> Result<NodeId, GbnfError> {
        self.at += 1;
        self.space(Lines::Any);
        let node = self.choice(Lines::Any)?;
        match self.take(")") {
            true => Ok(node),
            false => Err(self.unexpected("the next part of a group or \")\"")),
        }
    }

    fn literal(&mut self) -> Result<NodeId, GbnfError> {
        self.at += 1;
        let mut characters = Vec::new();
        while !self.take("\"") {
            let character = self.character("the rest of a text in \"…\"")?;
            characters.push(self.push(Node::Class(Class::of(character))));
        }
        Ok(self.in_sequence(characters))
    }

    fn class(&mut self) -> Result<NodeId, GbnfError> {
        const REST: &str = "the rest of a class in […]";
        let line = self.line();
        self.at += 1;
        let begin = self.at;
        let negated = self.take("^");
        let mut ranges = Vec::new();
        while self.peek() != Some(']') {
            let first = self.character(REST)?;
            let is_range = self.rest().starts_with('-') && !self.rest().starts_with("-]");
            let last = match is_range && self.take("-") {
                true => self.character(REST)?,
                false => first,
            };
            ranges.push((first, last));
        }
        let class = &self.text[begin..self.at];
        self.at += 1;
        let fault = |fault| GbnfError::Class {
            line,
            class: class.to_owned(),
            fault,
        };
        if ranges.iter().any(|(first, last)| first > last) {
            return Err(fault("a range that ends before it begins"));
        }
        let class = Class::new(ranges, negated).ok_or_else(|| fault("no character"))?;
        Ok(self.push(Node::Class(class)))
    }

    /// A character of a literal or class, perhaps escaped.
    fn character(&mut self, expected: &'static str) -> Result<char, GbnfError> {
        let begin = self.at;
        let character = self.peek().ok_or_else(|| self.unexpected(expected))?;
        self.at += character.len_utf8();
        if character != '\\' {
            return Ok(character);
        }
        let kind = self.peek().ok_or_else(|| self.unexpected(expected))?;
        self.at += kind.len_utf8();
        let escaped = match kind {
            'n' => Some('\n'),
            'r' => Some('\r'),
            't' => Some('\t'),
            '\\' | '"' | '[' | ']' | '-' => Some(kind),
            'x' => self.code(2),
            'u' => self.code(4),
            'U' => self.code(8),
            _ => None,
        };
        escaped.ok_or_else(|| GbnfError::Escape {
            line: self.line(),
            escape: self.text[begin..self.at].to_owned(),
        })
    }

    /// A character by so many hexadecimal digits.
    fn code(&mut self, digits: usize) -> Option<char> {
        let rest = self.rest();
        let known = |character: char| character.is_ascii_hexdigit();
        let length = rest
            .chars()
            .take(digits)
            .take_while(|&digit| known(digit))
            .count();
        self.at += length;
        let code = u32::from_str_radix(&rest[..length], 16).ok()?;
        char::from_u32(code).filter(|_| length == digits)
    }

    /// How often what stands before it comes, if that is said here.
    fn repetition(&mut self) -> Result<Option<(u32, Option<u32>)>, GbnfError> {
        let bounds = match self.peek() {
            Some('*') => (0, None),
            Some('+') => (1, None),
            Some('?') => (0, Some(1)),
            Some('{') => return self.bounds().map(Some),
            _ => return Ok(None),
        };
        self.at += 1;
        Ok(Some(bounds))
    }

    fn bounds(&mut self) -> Result<(u32, Option<u32>), GbnfError> {
        let line = self.line();
        self.at += 1;
        let text = self.take_while(|character| character != '}');
        if !self.take("}") {
            return Err(self.unexpected("the rest of a repetition in {…}"));
        }
        let number = |text: &str| -> Option<u32> {
            let text = text.trim();
            let digits = text.bytes().all(|byte| byte.is_ascii_digit());
            let number = text.parse().ok().filter(|_| digits);
            number.filter(|&number| number <= MAX_REPETITION)
        };
        let bounds = match text.split_once(',') {
            None => number(text).map(|count| (count, Some(count))),
            Some((min, max)) if max.trim().is_empty() => number(min).map(|min| (min, None)),
            Some((min, max)) => number(min)
                .zip(number(max))
                .map(|(min, max)| (min, Some(max))),
        };
        let sound = bounds.filter(|&(min, max)| max.is_none_or(|max| min <= max));
        sound.ok_or_else(|| GbnfError::Repetition {
            line,
            repetition: text.to_owned(),
        })
    }
}

fn line_of(text: &str, at: usize) -> usize {
    1 + text[..at].bytes().filter(|&byte| byte == b'\n').count()
}
