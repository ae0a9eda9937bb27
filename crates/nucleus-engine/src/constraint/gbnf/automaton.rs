//! Which lexemes a lexer that takes the longest would take wrongly.

use std::collections::{BTreeSet, HashSet};

use super::grammar::{Grammar, Node, NodeId};
use super::letters::{Alphabet, Letters};

/// Most steps in looking for all conflicts of a grammar, of some ten nanoseconds each.
pub(super) const MAX_STEPS: usize = 2_000_000;

/// A lexeme: nodes one after the other, and what may come after them.
pub(super) struct Lexeme<'a> {
    pub(super) nodes: &'a [NodeId],
    pub(super) follow: Letters,
}

/// The lexemes that can still go on, with a letter that may follow another, where that other is complete: a lexer that takes the longest
/// would go on there, although the grammar may have meant the other. Nothing if that takes more than what is left of the steps.
///
/// A repetition with bounds counts as one without, which finds more and misses nothing.
pub(super) fn conflicts(
    grammar: &Grammar,
    alphabet: &Alphabet,
    lexemes: &[Lexeme<'_>],
    steps_left: &mut usize,
) -> Option<BTreeSet<usize>> {
    let automaton = Automaton::new(grammar, alphabet, lexemes, steps_left)?;
    let mut conflicts = BTreeSet::new();
    let mut seen = HashSet::new();
    // Pairs of places, in two lexemes, that one text leads to.
    let mut open = vec![(&automaton.begin, &automaton.begin)];
    while let Some((one, other)) = open.pop() {
        take(steps_left, one.places.len() * other.places.len())?;
        for &a in &one.places {
            for &b in &other.places {
                let [from, to] = [a, b].map(|place| &automaton.places[place]);
                if !from.letters.meets(to.letters) || !seen.insert((a, b)) {
                    continue;
                }
                for &complete in &from.next.complete {
                    let follow = lexemes[complete].follow;
                    let goes_on = |&place: &usize| automaton.places[place].letters.meets(follow);
                    if to.next.places.iter().any(goes_on) {
                        conflicts.insert(to.lexeme);
                    }
                }
                open.push((&from.next, &to.next));
            }
        }
    }
    Some(conflicts)
}

/// Nothing if there are not so many left.
fn take(steps_left: &mut usize, steps: usize) -> Option<()> {
    *steps_left = steps_left.checked_sub(steps)?;
    Some(())
}

/// Where the lexer may be in the lexemes: one character of one of them, each time it is written (Glushkov's automaton).
struct Automaton {
    places: Vec<Place>,
    begin: Reached,
}

struct Place {
    letters: Letters,
    lexeme: usize,
    next: Reached,
}

/// What is reached without a further letter.
#[derive(Default, Clone)]
struct Reached {
    places: Vec<usize>,
    /// Lexemes that are complete.
    complete: Vec<usize>,
}

impl Automaton {
    fn new(
        grammar: &Grammar,
        alphabet: &Alphabet,
        lexemes: &[Lexeme<'_>],
        steps_left: &mut usize,
    ) -> Option<Self> {
        let mut builder = Builder {
            grammar,
            alphabet,
            states: Vec::new(),
        };
        let mut begins = Vec::with_capacity(lexemes.len());
        for (index, lexeme) in lexemes.iter().enumerate() {
            let end = builder.push(State::End(index));
            begins.push(builder.sequence(lexeme.nodes, end));
        }
        builder.finish(begins, steps_left)
    }
}

/// Builds the automaton from one whose states may be passed without a letter (Thompson's).
struct Builder<'a> {
    grammar: &'a Grammar,
    alphabet: &'a Alphabet,
    states: Vec<State>,
}

enum State {
    Letter(Letters, usize),
    Fork(Vec<usize>),
    End(usize),
}

impl Builder<'_> {
    fn push(&mut self, state: State) -> usize {
        self.states.push(state);
        self.states.len() - 1
    }

    fn sequence(&mut self, nodes: &[NodeId], next: usize) -> usize {
        let behind = |next, &node: &NodeId| self.node(node, next);
        nodes.iter().rev().fold(next, behind)
    }

    /// The state in which the node begins, if `next` is the one behind it.
    fn node(&mut self, id: NodeId, next: usize) -> usize {
        let grammar = self.grammar;
        match &grammar.nodes[id] {
            Node::Class(class) => self.push(State::Letter(self.alphabet.letters(class), next)),
            Node::Sequence(nodes) => self.sequence(nodes, next),
            Node::Choice(nodes) => {
                let begins = nodes.iter().map(|&node| self.node(node, next)).collect();
                self.push(State::Fork(begins))
            }
            Node::Repeat { node, min, max } => {
                let again = self.push(State::Fork(vec![next]));
                let behind = if *max == Some(1) { next } else { again };
                let begin = self.node(*node, behind);
                if behind == again {
                    self.states[again] = State::Fork(vec![begin, next]);
                }
                match min {
                    0 => self.push(State::Fork(vec![begin, next])),
                    _ => begin,
                }
            }
            Node::Rule(rule) => self.node(grammar.rules[*rule].body, next),
        }
    }

    fn finish(self, begins: Vec<usize>, steps_left: &mut usize) -> Option<Automaton> {
        let mut place_of = vec![0; self.states.len()];
        let mut places = 0;
        for (state, place) in self.states.iter().zip(&mut place_of) {
            *place = places;
            places += usize::from(matches!(state, State::Letter(..)));
        }
        let mut automaton = Automaton {
            places: Vec::with_capacity(places),
            begin: self.reached(begins, &place_of, steps_left)?,
        };
        // A lexeme's states stand behind its end.
        let mut lexeme = 0;
        for state in &self.states {
            match *state {
                State::End(index) => lexeme = index,
                State::Letter(letters, next) => {
                    let next = self.reached(vec![next], &place_of, steps_left)?;
                    automaton.places.push(Place {
                        letters,
                        lexeme,
                        next,
                    });
                }
                State::Fork(_) => {}
            }
        }
        Some(automaton)
    }

    fn reached(
        &self,
        begins: Vec<usize>,
        place_of: &[usize],
        steps_left: &mut usize,
    ) -> Option<Reached> {
        let mut reached = Reached::default();
        let mut seen = HashSet::new();
        let mut open = begins;
        while let Some(state) = open.pop() {
            if !seen.insert(state) {
                continue;
            }
            take(steps_left, 1)?;
            match &self.states[state] {
                State::Letter(..) => reached.places.push(place_of[state]),
                State::Fork(next) => open.extend(next),
                State::End(lexeme) => reached.complete.push(*lexeme),
            }
        }
        Some(reached)
    }
}
