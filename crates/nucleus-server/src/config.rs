//! What an operator decides: where to listen, who may call, and the bounds of a request.

use std::fmt;
use std::hint::black_box;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

/// How the server listens and what it lets in.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// Where to listen; port 0 lets the system choose one.
    pub address: SocketAddr,
    /// The key that requests must carry; required to listen on an address that is not loopback.
    pub api_key: Option<ApiKey>,
    /// Host names that requests may name beside those of loopback. Without a key, a request for any
    /// other host is refused, so that a web page cannot reach the server by rebinding its own name.
    pub allowed_hosts: Vec<String>,
    /// Whether `POST /shutdown` may be used without a key.
    pub allow_shutdown: bool,
    /// Sizes.
    pub limits: Limits,
    /// Times.
    pub timeouts: Timeouts,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, 8080)),
            api_key: None,
            allowed_hosts: Vec::new(),
            allow_shutdown: false,
            limits: Limits::default(),
            timeouts: Timeouts::default(),
        }
    }
}

/// Sizes that a request may not exceed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes in a request's head, at least 8192.
    pub head_bytes: usize,
    /// Header fields of a request.
    pub headers: usize,
    /// Bytes in a request's body.
    pub body_bytes: usize,
    /// Tokens in a prompt; `None`: what the model's context holds.
    pub prompt_tokens: Option<usize>,
    /// Tokens that a request may generate; `None`: what the model's context holds.
    pub output_tokens: Option<usize>,
    /// Stop strings in a request to `/execute`.
    pub stops: usize,
    /// Stop strings in a request to an endpoint that is compatible with another server's.
    pub compatible_stops: usize,
    /// Choices of one request: its prompts times `n`.
    pub choices: usize,
    /// Bytes in one stop string, or in a word that is banned.
    pub stop_bytes: usize,
    /// Words that a request may ban as text. Each is tokenised, and looked at for every token.
    pub bad_words: usize,
    /// Connections open at once; more wait in the system's queue.
    pub connections: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            head_bytes: 64 << 10,
            headers: 100,
            body_bytes: 8 << 20,
            prompt_tokens: None,
            output_tokens: None,
            stops: 4,
            compatible_stops: 16,
            choices: 128,
            stop_bytes: 1024,
            bad_words: 128,
            connections: 1024,
        }
    }
}

impl Limits {
    /// Most tokens that a request may ask for, in a context of that many.
    pub(crate) fn most_output(&self, context_length: usize) -> u64 {
        let most = self.output_tokens.unwrap_or(context_length);
        most.min(context_length) as u64
    }
}

/// Times after which the server stops waiting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// For a request's head, and for the next request on an idle connection.
    pub header: Duration,
    /// For a request's whole body.
    pub body: Duration,
    /// For a client that takes no byte of what is written to it.
    pub write: Duration,
    /// Between two keep-alive comments of a silent event stream.
    pub keep_alive: Duration,
    /// For running requests to end once the server shuts down.
    pub drain: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            header: Duration::from_secs(20),
            body: Duration::from_secs(30),
            write: Duration::from_secs(60),
            keep_alive: Duration::from_secs(15),
            drain: Duration::from_secs(30),
        }
    }
}

/// A shared secret. Never printed.
#[derive(Clone)]
pub struct ApiKey(String);

impl ApiKey {
    /// A key; `None` if it is empty or holds anything but visible ASCII, which no header could carry.
    pub fn new(key: impl Into<String>) -> Option<Self> {
        let key = key.into();
        let valid = !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_graphic());
        valid.then_some(Self(key))
    }

    /// Whether `given` is the key. The time taken depends on the length of `given` alone.
    pub fn matches(&self, given: &[u8]) -> bool {
        let key = self.0.as_bytes();
        let mut difference = key.len() ^ given.len();
        for (index, &byte) in given.iter().enumerate() {
            difference |= usize::from(byte ^ key[index % key.len()]);
        }
        black_box(difference) == 0
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKey(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_matches_itself_alone() {
        let key = ApiKey::new("secret").unwrap();
        assert!(key.matches(b"secret"));
        for other in ["", "s", "secre", "secreT", "secrets", "secretsecret"] {
            assert!(!key.matches(other.as_bytes()), "{other}");
        }
    }

    #[test]
    fn a_key_can_travel_in_a_header_and_is_never_printed() {
        assert!(ApiKey::new("").is_none());
        assert!(ApiKey::new("two words").is_none());
        assert!(ApiKey::new("schlüssel").is_none());
        assert_eq!(
            format!("{:?}", ApiKey::new("secret").unwrap()),
            "ApiKey(..)"
        );
    }
}
