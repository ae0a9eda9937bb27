//! Messages to a prompt.
