//! The rules of a grammar, and what follows from them.

use super::GbnfError;
use super::letters::{Alphabet, Letters};

/// A node's place in [`Grammar::nodes`].
pub(super) type NodeId = usize;
/// A rule's place in [`Grammar::rules`].
pub(super) type RuleId = usize;

/// Ranges of characters, both ends included, ascending and apart; never none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Class(Vec<(char, char)>);

impl Class {
    /// The characters of these ranges, or with `negated` all others; nothing if there are none.
    pub(super) fn new(mut ranges: Vec<(char, char)>, negated: bool) -> Option<Self> {
        ranges.sort_unstable();
        let mut merged: Vec<(char, char)> = Vec::with_capacity(ranges.len());
        for (first, last) in ranges {
            match merged.last_mut() {
                Some(before) if Some(first) <= after(before.1) || before.1 == char::MAX => {
                    before.1 = before.1.max(last);
                }
                _ => merged.push((first, last)),
            }
        }
        let ranges = if negated { others(&merged) } else { merged };
        (!ranges.is_empty()).then_some(Self(ranges))
    }

    pub(super) fn of(character: char) -> Self {
        Self(vec![(character, character)])
    }

    pub(super) fn any() -> Self {
        Self(vec![('\0', char::MAX)])
    }

    pub(super) fn ranges(&self) -> &[(char, char)] {
        &self.0
    }
}

/// The character after this one.
pub(super) fn after(character: char) -> Option<char> {
    (character..=char::MAX).nth(1)
}

/// The ranges between these.
fn others(ranges: &[(char, char)]) -> Vec<(char, char)> {
    let mut others = Vec::with_capacity(ranges.len() + 1);
    let mut next = Some('\0');
    for &(first, last) in ranges {
        let before = ('\0'..first).next_back();
        if let (Some(next), Some(before)) = (next, before)
            && next <= before
        {
            others.push((next, before));
        }
        next = after(last);
    }
    others.extend(next.map(|next| (next, char::MAX)));
    others
}

/// A part of a rule. Its parts come before it in [`Grammar::nodes`]; only rules go round.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Node {
    /// One character of a class.
    Class(Class),
    /// One after the other; none is the empty text.
    Sequence(Vec<NodeId>),
    /// One of them.
    Choice(Vec<NodeId>),
    /// `min` times or more often, `max` times at most, which is not 0.
    Repeat {
        node: NodeId,
        min: u32,
        max: Option<u32>,
    },
    Rule(RuleId),
}

#[derive(Debug)]
pub(super) struct Rule {
    pub(super) name: String,
    pub(super) body: NodeId,
}

#[derive(Debug)]
pub(super) struct Grammar {
    pub(super) nodes: Vec<Node>,
    pub(super) rules: Vec<Rule>,
    pub(super) root: RuleId,
}

impl Grammar {
    fn push(&mut self, node: Node) -> NodeId {
        self.nodes.push(node);
        self.nodes.len() - 1
    }

    /// Writes rules that call themselves at their end (`ws ::= ([ \t] ws)?`) as repetitions (`ws ::= [ \t]*`): R = A R | B is A* B.
    /// So they are without recursion, and can be lexemes.
    pub(super) fn unroll(&mut self) {
        for rule in 0..self.rules.len() {
            if let Some(body) = self.unrolled(rule) {
                self.rules[rule].body = body;
            }
        }
    }

    fn unrolled(&mut self, rule: RuleId) -> Option<NodeId> {
        let mut alternatives = Vec::new();
        self.alternatives(self.rules[rule].body, &mut alternatives);
        let calls_at_end = |items: &Vec<NodeId>| {
            let last = items.last().map(|&last| &self.nodes[last]);
            last == Some(&Node::Rule(rule))
        };
        let (mut again, ends): (Vec<_>, Vec<_>) = alternatives.into_iter().partition(calls_at_end);
        for items in &mut again {
            items.pop();
        }
        again.retain(|items| !items.is_empty());
        let mut items = again.iter().chain(&ends).flatten();
        if again.is_empty() || ends.is_empty() || items.any(|&item| self.mentions(item, rule)) {
            return None;
        }
        let choice = |grammar: &mut Self, alternatives: Vec<Vec<NodeId>>| {
            let sequences = alternatives.into_iter().map(Node::Sequence);
            let sequences = sequences.map(|node| grammar.push(node)).collect();
            grammar.push(Node::Choice(sequences))
        };
        let node = choice(self, again);
        let (min, max) = (0, None);
        let repeated = self.push(Node::Repeat { node, min, max });
        let end = choice(self, ends);
        Some(self.push(Node::Sequence(vec![repeated, end])))
    }

    /// The sequences of which a node is one.
    fn alternatives(&self, id: NodeId, into: &mut Vec<Vec<NodeId>>) {
        match &self.nodes[id] {
            Node::Choice(nodes) => {
                for &node in nodes {
                    self.alternatives(node, into);
                }
            }
            Node::Repeat {
                node,
                min: 0,
                max: Some(1),
            } => {
                self.alternatives(*node, into);
                into.push(Vec::new());
            }
            Node::Sequence(nodes) => into.push(nodes.clone()),
            _ => into.push(vec![id]),
        }
    }

    /// Whether the node is the empty text, written as such.
    pub(super) fn is_empty(&self, id: NodeId) -> bool {
        matches!(&self.nodes[id], Node::Sequence(nodes) if nodes.is_empty())
    }

    fn mentions(&self, id: NodeId, rule: RuleId) -> bool {
        match &self.nodes[id] {
            Node::Class(_) => false,
            Node::Sequence(nodes) | Node::Choice(nodes) => {
                nodes.iter().any(|&node| self.mentions(node, rule))
            }
            Node::Repeat { node, .. } => self.mentions(*node, rule),
            Node::Rule(other) => *other == rule,
        }
    }

    /// Every rule has a text that ends it.
    pub(super) fn check_endings(&self) -> Result<(), GbnfError> {
        let ends = self.least(|ends: &[bool], node| match node {
            Node::Class(_) => true,
            Node::Sequence(nodes) => nodes.iter().all(|&node| ends[node]),
            Node::Choice(nodes) => nodes.iter().any(|&node| ends[node]),
            Node::Repeat { node, min, .. } => *min == 0 || ends[*node],
            Node::Rule(rule) => ends[self.rules[*rule].body],
        });
        match self.rules.iter().find(|rule| !ends[rule.body]) {
            None => Ok(()),
            Some(rule) => Err(GbnfError::Endless {
                name: rule.name.clone(),
            }),
        }
    }

    /// The least values of all nodes that agree with each other, beginning with the default for each; `value` computes a node's from
    /// those of others, and never less from more.
    pub(super) fn least<T: Copy + PartialEq + Default>(
        &self,
        value: impl Fn(&[T], &Node) -> T,
    ) -> Vec<T> {
        let mut values = vec![T::default(); self.nodes.len()];
        loop {
            let mut changed = false;
            for (id, node) in self.nodes.iter().enumerate() {
                let new = value(&values, node);
                changed |= new != values[id];
                values[id] = new;
            }
            if !changed {
                return values;
            }
        }
    }
}

/// Most nodes, written out, of a lexeme; what has more is cut up.
pub(super) const MAX_LEXEME: usize = 4_096;

/// What a grammar says of its nodes.
pub(super) struct Facts {
    pub(super) alphabet: Alphabet,
    /// Whether the empty text is one of its texts.
    pub(super) nullable: Vec<bool>,
    /// How many nodes it is with its rules written out: nothing if it has recursion, or more than [`MAX_LEXEME`].
    pub(super) size: Vec<Option<usize>>,
    /// What may come after it.
    pub(super) follow: Vec<Letters>,
}

impl Facts {
    pub(super) fn new(grammar: &Grammar) -> Self {
        let alphabet = Alphabet::new(grammar);
        let nullable = nullable(grammar);
        let first = first(grammar, &alphabet, &nullable);
        Self {
            size: size(grammar),
            follow: follow(grammar, &nullable, &first),
            nullable,
            alphabet,
        }
    }
}

fn nullable(grammar: &Grammar) -> Vec<bool> {
    grammar.least(|nullable: &[bool], node| match node {
        Node::Class(_) => false,
        Node::Sequence(nodes) => nodes.iter().all(|&node| nullable[node]),
        Node::Choice(nodes) => nodes.iter().any(|&node| nullable[node]),
        Node::Repeat { node, min, .. } => *min == 0 || nullable[*node],
        Node::Rule(rule) => nullable[grammar.rules[*rule].body],
    })
}

fn size(grammar: &Grammar) -> Vec<Option<usize>> {
    grammar.least(|size: &[Option<usize>], node| {
        let parts = match node {
            Node::Class(_) => Some(0),
            Node::Sequence(nodes) | Node::Choice(nodes) => {
                nodes.iter().map(|&node| size[node]).sum()
            }
            Node::Repeat { node, .. } => size[*node],
            Node::Rule(rule) => size[grammar.rules[*rule].body],
        };
        parts
            .map(|parts| parts + 1)
            .filter(|&size| size <= MAX_LEXEME)
    })
}

/// What each node may begin with.
fn first(grammar: &Grammar, alphabet: &Alphabet, nullable: &[bool]) -> Vec<Letters> {
    grammar.least(|first: &[Letters], node| match node {
        Node::Class(class) => alphabet.letters(class),
        Node::Sequence(nodes) => first_of(nodes, first, nullable).0,
        Node::Choice(nodes) => nodes
            .iter()
            .fold(Letters::default(), |all, &node| all.with(first[node])),
        Node::Repeat { node, .. } => first[*node],
        Node::Rule(rule) => first[grammar.rules[*rule].body],
    })
}

/// What a sequence may begin with, and whether it may be empty.
fn first_of(nodes: &[NodeId], first: &[Letters], nullable: &[bool]) -> (Letters, bool) {
    let mut letters = Letters::default();
    for &node in nodes {
        letters = letters.with(first[node]);
        if !nullable[node] {
            return (letters, false);
        }
    }
    (letters, true)
}

/// What may come after each node.
fn follow(grammar: &Grammar, nullable: &[bool], first: &[Letters]) -> Vec<Letters> {
    let mut follow = vec![Letters::default(); grammar.nodes.len()];
    let mut changed = true;
    while changed {
        changed = false;
        // What has parts stands behind them in the list: what follows it is known when it is their turn.
        for (id, node) in grammar.nodes.iter().enumerate().rev() {
            let mut behind = follow[id];
            let mut add = |to: NodeId, letters: Letters| {
                let all = follow[to].with(letters);
                changed |= all != follow[to];
                follow[to] = all;
            };
            match node {
                Node::Class(_) => {}
                Node::Sequence(nodes) => {
                    for &node in nodes.iter().rev() {
                        add(node, behind);
                        let rest = if nullable[node] {
                            behind
                        } else {
                            Letters::default()
                        };
                        behind = first[node].with(rest);
                    }
                }
                Node::Choice(nodes) => nodes.iter().for_each(|&node| add(node, behind)),
                Node::Repeat { node, max, .. } => {
                    let again = if *max == Some(1) {
                        Letters::default()
                    } else {
                        first[*node]
                    };
                    add(*node, behind.with(again));
                }
                Node::Rule(rule) => add(grammar.rules[*rule].body, behind),
            }
        }
    }
    follow
}
