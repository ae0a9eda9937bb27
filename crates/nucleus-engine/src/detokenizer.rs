//! Token ids to text, never half a character.
