//! The header of a `.npy` file: a dictionary literal of Python.

use std::iter::Peekable;
use std::str::Chars;

use super::NpyError;

/// The header's dictionary: exactly these three keys, in any order.
#[derive(Debug, PartialEq)]
pub(super) struct Header {
    /// Element type and byte order, such as `<f4`.
    pub(super) descr: String,
    /// Whether columns, not rows, lie in one piece.
    pub(super) fortran_order: bool,
    /// Outermost dimension first.
    pub(super) shape: Vec<u64>,
}

impl Header {
    /// Reads the dictionary, which white space may surround.
    pub(super) fn parse(text: &str) -> Result<Self, NpyError> {
        let mut literal = Literal {
            chars: text.chars().peekable(),
        };
        let (mut descr, mut fortran_order, mut shape) = (None, None, None);
        literal.expect('{')?;
        while !literal.skip('}') {
            let key = literal.string()?;
            literal.expect(':')?;
            match key.as_str() {
                "descr" => descr = Some(literal.string()?),
                "fortran_order" => fortran_order = Some(literal.boolean()?),
                "shape" => shape = Some(literal.tuple()?),
                _ => {
                    return Err(NpyError::Header(
                        "it has a key other than descr, fortran_order and shape",
                    ));
                }
            }
            if !literal.skip(',') {
                literal.expect('}')?;
                break;
            }
        }
        literal.end()?;
        Ok(Self {
            descr: descr.ok_or(NpyError::Header("descr is missing"))?,
            fortran_order: fortran_order.ok_or(NpyError::Header("fortran_order is missing"))?,
            shape: shape.ok_or(NpyError::Header("shape is missing"))?,
        })
    }
}

/// A reader of the few Python literals that a header is made of. White space may precede everything.
struct Literal<'a> {
    chars: Peekable<Chars<'a>>,
}

impl Literal<'_> {
    fn peek(&mut self) -> Option<char> {
        while self.chars.next_if(|c| c.is_ascii_whitespace()).is_some() {}
        self.chars.peek().copied()
    }

    fn skip(&mut self, wanted: char) -> bool {
        self.peek() == Some(wanted) && self.chars.next().is_some()
    }

    fn expect(&mut self, wanted: char) -> Result<(), NpyError> {
        if self.skip(wanted) {
            Ok(())
        } else {
            Err(NpyError::Header("it is not a dictionary of literals"))
        }
    }

    fn end(&mut self) -> Result<(), NpyError> {
        if self.peek().is_none() {
            Ok(())
        } else {
            Err(NpyError::Header("something follows the dictionary"))
        }
    }

    /// A string without escapes, in single or double quotes.
    fn string(&mut self) -> Result<String, NpyError> {
        let quote = self
            .peek()
            .filter(|c| matches!(c, '\'' | '"'))
            .ok_or(NpyError::Header("a string is expected"))?;
        self.chars.next();
        let mut text = String::new();
        loop {
            match self.chars.next() {
                None | Some('\\') => return Err(NpyError::Header("a string does not end")),
                Some(c) if c == quote => return Ok(text),
                Some(c) => text.push(c),
            }
        }
    }

    fn boolean(&mut self) -> Result<bool, NpyError> {
        match self.run(|c| c.is_ascii_alphabetic()).as_str() {
            "True" => Ok(true),
            "False" => Ok(false),
            _ => Err(NpyError::Header("fortran_order is neither True nor False")),
        }
    }

    /// A tuple of sizes: `()`, `(4,)` or `(2, 4)`. `(4)` is not a tuple in Python, and numpy refuses it too.
    fn tuple(&mut self) -> Result<Vec<u64>, NpyError> {
        let mut sizes = Vec::new();
        self.expect('(')?;
        while !self.skip(')') {
            let size = self.run(|c| c.is_ascii_digit()).parse();
            sizes.push(size.map_err(|_| NpyError::Header("shape is not a tuple of sizes"))?);
            let more = self.skip(',');
            if !more && sizes.len() == 1 {
                return Err(NpyError::Header("shape is not a tuple of sizes"));
            }
            if !more {
                self.expect(')')?;
                break;
            }
        }
        Ok(sizes)
    }

    fn run(&mut self, belongs: impl Fn(char) -> bool) -> String {
        self.peek();
        std::iter::from_fn(|| self.chars.next_if(|&c| belongs(c))).collect()
    }
}
