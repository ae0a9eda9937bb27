//! A worker as those see it who start it and call it. Every test of a worker as a process has this module.

use std::io::{self, BufReader, Write};
use std::net::TcpStream;

/// Reads what a worker says on standard error until it says which address it listens on.
pub(crate) fn address(lines: &mut impl Iterator<Item = io::Result<String>>) -> String {
    lines
        .map(|line| line.expect("messages are UTF-8"))
        .find_map(|line| line.strip_prefix("listening on http://").map(str::to_owned))
        .expect("the worker listens")
}

/// Sends one request (`head` is its method and path); the answer is what can be read.
pub(crate) fn send(address: &str, head: &str, body: &str) -> BufReader<TcpStream> {
    let mut stream = TcpStream::connect(address).expect("the worker listens");
    let length = body.len();
    write!(
        stream,
        "{head} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}",
    )
    .expect("the worker reads");
    BufReader::new(stream)
}
