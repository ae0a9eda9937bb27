//! The decoders.
