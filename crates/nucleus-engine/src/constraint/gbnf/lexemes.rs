//! Which parts of a grammar are lexemes.

use std::collections::{HashMap, HashSet, VecDeque};

use super::automaton::{Lexeme, MAX_STEPS, conflicts};
use super::grammar::{Facts, Grammar, MAX_LEXEME, Node, NodeId, RuleId};
use super::letters::Letters;

/// Most nodes, written out, of all lexemes.
const MAX_ALL: usize = 100_000;

/// How often a grammar is cut up further before all of it becomes single characters.
const MAX_ROUNDS: usize = 64;

/// A part of a rule, as lexemes and rules.
#[derive(Debug)]
pub(super) enum Part {
    Lexeme {
        lexeme: usize,
        /// Whether it may be left out. A lexeme is never empty itself.
        optional: bool,
    },
    Sequence(Vec<Part>),
    Choice(Vec<Part>),
    Repeat {
        part: Box<Part>,
        min: u32,
        max: Option<u32>,
    },
    Rule(RuleId),
}

/// A grammar over lexemes.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// The nodes, one after the other, of each lexeme.
    pub(super) lexemes: Vec<Vec<NodeId>>,
    /// The rules that are needed, the root first.
    pub(super) rules: Vec<(RuleId, Part)>,
    follow: Vec<Letters>,
}

/// Chooses lexemes that are as large as they can be without a conflict.
pub(super) fn choose(grammar: &Grammar, facts: &Facts) -> Plan {
    let mut cut = HashSet::new();
    let mut steps_left = MAX_STEPS;
    for _ in 0..MAX_ROUNDS {
        let plan = Planner::plan(grammar, facts, Cut::These(&cut));
        let size = |&node: &NodeId| facts.size[node].unwrap_or_default();
        if plan.lexemes.iter().flatten().map(size).sum::<usize>() > MAX_ALL {
            break;
        }
        let lexemes = plan.lexemes.iter().zip(&plan.follow);
        let lexemes: Vec<Lexeme<'_>> = lexemes
            .map(|(nodes, &follow)| Lexeme { nodes, follow })
            .collect();
        match conflicts(grammar, &facts.alphabet, &lexemes, &mut steps_left) {
            None => break,
            Some(conflicts) if conflicts.is_empty() => return plan,
            Some(conflicts) => {
                let nodes = |index: usize| plan.lexemes[index].clone();
                cut.extend(conflicts.into_iter().map(nodes));
            }
        }
    }
    Planner::plan(grammar, facts, Cut::All)
}

/// What must not be a lexeme.
#[derive(Clone, Copy)]
enum Cut<'a> {
    These(&'a HashSet<Vec<NodeId>>),
    /// All but single characters.
    All,
}

struct Planner<'a> {
    grammar: &'a Grammar,
    facts: &'a Facts,
    cut: Cut<'a>,
    plan: Plan,
    known: HashMap<Vec<NodeId>, usize>,
    /// Rules that are needed, and those of them that have no part yet.
    met: HashSet<RuleId>,
    open: VecDeque<RuleId>,
}

impl<'a> Planner<'a> {
    fn plan(grammar: &'a Grammar, facts: &'a Facts, cut: Cut<'a>) -> Plan {
        let mut planner = Self {
            grammar,
            facts,
            cut,
            plan: Plan::default(),
            known: HashMap::new(),
            met: HashSet::from([grammar.root]),
            open: VecDeque::from([grammar.root]),
        };
        while let Some(rule) = planner.open.pop_front() {
            let part = planner.part(grammar.rules[rule].body);
            planner.plan.rules.push((rule, part));
        }
        planner.plan
    }

    fn part(&mut self, id: NodeId) -> Part {
        if let Some(lexeme) = self.lexeme(&[id]) {
            return lexeme;
        }
        match &self.grammar.nodes[id] {
            Node::Class(_) => unreachable!("nothing goes on behind a single character"),
            Node::Sequence(nodes) => Part::Sequence(self.sequence(nodes)),
            Node::Choice(nodes) => {
                Part::Choice(nodes.iter().map(|&node| self.part(node)).collect())
            }
            &Node::Repeat { node, min, max } => Part::Repeat {
                part: Box::new(self.part(node)),
                min,
                max,
            },
            &Node::Rule(rule) => {
                if self.met.insert(rule) {
                    self.open.push_back(rule);
                }
                Part::Rule(rule)
            }
        }
    }

    /// The parts of a sequence: as many neighbours as can be are one lexeme.
    fn sequence(&mut self, nodes: &[NodeId]) -> Vec<Part> {
        let mut parts = Vec::new();
        let mut rest = nodes;
        while !rest.is_empty() {
            let (run, behind) = rest.split_at(self.run(rest).max(1));
            match self.lexeme(run) {
                Some(lexeme) => parts.push(lexeme),
                None => parts.extend(run.iter().map(|&node| self.part(node))),
            }
            rest = behind;
        }
        parts
    }

    /// How many of these nodes are small enough together to be one lexeme.
    fn run(&self, nodes: &[NodeId]) -> usize {
        let mut all = 0;
        let fits = |&&node: &&NodeId| {
            let size = self.facts.size[node];
            all += size.unwrap_or(MAX_LEXEME);
            size.is_some() && all <= MAX_LEXEME
        };
        nodes.iter().take_while(fits).count()
    }

    /// The nodes as one lexeme, if they can be one.
    fn lexeme(&mut self, nodes: &[NodeId]) -> Option<Part> {
        let nodes = self.resolved(nodes);
        let &last = nodes.last()?;
        let sized = nodes.iter().all(|&node| self.facts.size[node].is_some());
        if !sized || self.is_cut(&nodes) {
            return None;
        }
        let optional = nodes.iter().all(|&node| self.facts.nullable[node]);
        if optional && !matches!(nodes[..], [node] if self.leaves_out(node)) {
            return None;
        }
        let plan = &mut self.plan;
        let lexeme = *self.known.entry(nodes).or_insert_with_key(|nodes| {
            plan.lexemes.push(nodes.clone());
            plan.follow.push(Letters::default());
            plan.lexemes.len() - 1
        });
        plan.follow[lexeme] = plan.follow[lexeme].with(self.facts.follow[last]);
        Some(Part::Lexeme { lexeme, optional })
    }

    fn is_cut(&self, nodes: &[NodeId]) -> bool {
        match self.cut {
            Cut::These(cut) => cut.contains(nodes),
            Cut::All => {
                let is_class = |&node: &NodeId| matches!(self.grammar.nodes[node], Node::Class(_));
                nodes.len() != 1 || !nodes.iter().all(is_class)
            }
        }
    }

    /// A rule alone stands for its body, and a sequence for its nodes: so equal lexemes are one.
    fn resolved(&self, nodes: &[NodeId]) -> Vec<NodeId> {
        let [node] = *nodes else {
            return nodes.to_vec();
        };
        match &self.grammar.nodes[node] {
            Node::Rule(rule) if self.facts.size[node].is_some() => {
                self.resolved(&[self.grammar.rules[*rule].body])
            }
            Node::Sequence(nodes) => self.resolved(nodes),
            _ => vec![node],
        }
    }

    /// Whether the empty text can be [taken out](super::lark) of an optional node without recursion: of all but sequences of several optional
    /// nodes, and the empty one, of which nothing would be left.
    fn leaves_out(&self, id: NodeId) -> bool {
        let all = |nodes: &[NodeId]| {
            let rest = |&&node: &&NodeId| !self.grammar.is_empty(node);
            let left_out = |&node: &NodeId| !self.facts.nullable[node] || self.leaves_out(node);
            nodes.iter().any(|node| rest(&node)) && nodes.iter().filter(rest).all(left_out)
        };
        match &self.grammar.nodes[id] {
            Node::Class(_) => true,
            Node::Sequence(nodes) => nodes.len() == 1 && all(nodes),
            Node::Choice(nodes) => all(nodes),
            Node::Repeat { node, .. } => all(&[*node]),
            Node::Rule(rule) => all(&[self.grammar.rules[*rule].body]),
        }
    }
}
