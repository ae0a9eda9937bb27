//! Stop strings, matched on text across token borders.
