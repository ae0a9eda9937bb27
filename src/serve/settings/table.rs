//! Every setting, one row each.

use std::net::IpAddr;

use nucleus_engine::model::KvType;
use nucleus_server::ApiKey;

use super::setting::{Kind, Setting};
use crate::device;

/// A count that always has a value.
macro_rules! count {
    ($($field:ident).+) => {
        Kind::Count {
            low: 1,
            high: u32::MAX as u64,
            get: |it| Some(it.$($field).+ as u64),
            set: |it, value| it.$($field).+ = value as usize,
        }
    };
}

/// A count that the program chooses unless it is given.
macro_rules! optional_count {
    ($high:expr, $($field:ident).+) => {
        Kind::Count {
            low: 1,
            high: $high,
            get: |it| it.$($field).+.map(|value| value as u64),
            set: |it, value| it.$($field).+ = Some(value as usize),
        }
    };
}

macro_rules! seconds {
    ($($field:ident).+) => {
        Kind::Seconds {
            get: |it| it.$($field).+,
            set: |it, value| it.$($field).+ = value,
        }
    };
}

const KV_TYPES: [KvType; 2] = [KvType::F16, KvType::F32];

fn name_of(kv_type: KvType) -> &'static str {
    match kv_type {
        KvType::F16 => "f16",
        KvType::F32 => "f32",
    }
}

/// Every setting, in the order of the help page.
pub(super) const SETTINGS: &[Setting] = &[
    Setting {
        key: "model",
        kind: Kind::Text {
            expected: "a file's name, or \"bundled\"",
            get: |it| it.model.clone(),
            set: |it, value| {
                it.model = Some(value.to_owned());
                !value.is_empty()
            },
        },
        help: "A GGUF file, a directory of safetensors files, or \"bundled\" for the model inside this program; unless given, that",
    },
    Setting {
        key: "threads",
        kind: optional_count!(1024, threads),
        help: "Threads to compute with; unless given, one per core, less one for the server where there are more than two",
    },
    Setting {
        key: "device",
        kind: Kind::Text {
            expected: device::EXPECTED,
            get: |it| Some(it.device.to_string()),
            set: |it, value| value.parse().map(|choice| it.device = choice).is_ok(),
        },
        help: "Where to compute: auto, cpu, or cuda:N in a build with the feature cuda",
    },
    Setting {
        key: "host",
        kind: Kind::Text {
            expected: "an IP address",
            get: |it| Some(it.server.address.ip().to_string()),
            set: |it, value| {
                let address: Result<IpAddr, _> = value.parse();
                address.map(|ip| it.server.address.set_ip(ip)).is_ok()
            },
        },
        help: "The address to listen on; without an API key only one of loopback",
    },
    Setting {
        key: "port",
        kind: Kind::Count {
            low: 0,
            high: u16::MAX as u64,
            get: |it| Some(it.server.address.port().into()),
            set: |it, value| it.server.address.set_port(value as u16),
        },
        help: "The port to listen on; 0 lets the system choose one",
    },
    Setting {
        key: "api_key",
        kind: Kind::Secret {
            expected: "an API key: visible ASCII characters, at least one",
            is_set: |it| it.server.api_key.is_some(),
            set: |it, value| {
                it.server.api_key = ApiKey::new(value);
                it.server.api_key.is_some()
            },
        },
        help: "The key that requests must carry as \"Authorization: Bearer KEY\"; better set in the environment or a file, where others cannot see it",
    },
    Setting {
        key: "allowed_host",
        kind: Kind::List {
            get: |it| &it.server.allowed_hosts,
            set: |it, values| it.server.allowed_hosts = values,
        },
        help: "A host name that requests may name besides those of loopback",
    },
    Setting {
        key: "allow_shutdown",
        kind: Kind::Switch {
            get: |it| it.server.allow_shutdown,
            set: |it, value| it.server.allow_shutdown = value,
        },
        help: "Let POST /shutdown end the worker without an API key",
    },
    Setting {
        key: "kv_tokens",
        kind: optional_count!(u32::MAX as u64, kv_tokens),
        help: "Tokens that the KV cache holds, of all requests together; unless given, eight full contexts, at most 32768",
    },
    Setting {
        key: "kv_type",
        kind: Kind::Text {
            expected: "f16 or f32",
            get: |it| Some(name_of(it.kv_type).to_owned()),
            set: |it, value| {
                let kv_type = KV_TYPES
                    .into_iter()
                    .find(|&kv_type| name_of(kv_type) == value);
                kv_type.map(|kv_type| it.kv_type = kv_type).is_some()
            },
        },
        help: "What the KV cache holds keys and values in: f16, rounded, or f32, in twice the memory",
    },
    Setting {
        key: "max_running",
        kind: count!(engine.max_running),
        help: "Most requests that run at once",
    },
    Setting {
        key: "max_waiting",
        kind: count!(engine.max_waiting),
        help: "Most requests that wait; more are refused with 429",
    },
    Setting {
        key: "step_tokens",
        kind: count!(engine.step_tokens),
        help: "Most tokens in a step: a long prompt delays running streams by no more than two of these; at least --max-running",
    },
    Setting {
        key: "no_prefix_reuse",
        kind: Kind::Switch {
            get: |it| !it.engine.prefix_reuse,
            set: |it, value| it.engine.prefix_reuse = !value,
        },
        help: "Compute every prompt from its beginning, even if the cache holds it; how fast an answer comes then says nothing of earlier prompts",
    },
    Setting {
        key: "max_connections",
        kind: count!(server.limits.connections),
        help: "Most connections open at once; more wait",
    },
    Setting {
        key: "max_head_bytes",
        kind: Kind::Count {
            low: 8192,
            high: 1 << 20,
            get: |it| Some(it.server.limits.head_bytes as u64),
            set: |it, value| it.server.limits.head_bytes = value as usize,
        },
        help: "Most bytes in a request's head; more are refused with 431",
    },
    Setting {
        key: "max_headers",
        kind: Kind::Count {
            low: 1,
            high: 10_000,
            get: |it| Some(it.server.limits.headers as u64),
            set: |it, value| it.server.limits.headers = value as usize,
        },
        help: "Most header fields of a request; more are refused with 431",
    },
    Setting {
        key: "max_body_bytes",
        kind: count!(server.limits.body_bytes),
        help: "Most bytes in a request's body; more are refused with 413",
    },
    Setting {
        key: "max_prompt_tokens",
        kind: optional_count!(u32::MAX as u64, server.limits.prompt_tokens),
        help: "Most tokens in a prompt; unless given, what the model's context holds",
    },
    Setting {
        key: "max_output_tokens",
        kind: optional_count!(u32::MAX as u64, server.limits.output_tokens),
        help: "Most tokens that a request may generate; unless given, what the model's context holds",
    },
    Setting {
        key: "max_stops",
        kind: count!(server.limits.stops),
        help: "Most stop strings of a request to /execute",
    },
    Setting {
        key: "max_compatible_stops",
        kind: count!(server.limits.compatible_stops),
        help: "Most stop strings of a request to the endpoints of OpenAI and llama.cpp",
    },
    Setting {
        key: "max_stop_bytes",
        kind: count!(server.limits.stop_bytes),
        help: "Most bytes in a stop string or a banned word",
    },
    Setting {
        key: "max_bad_words",
        kind: count!(server.limits.bad_words),
        help: "Most words that a request may ban as text",
    },
    Setting {
        key: "max_choices",
        kind: count!(server.limits.choices),
        help: "Most choices of a request: its prompts times \"n\"",
    },
    Setting {
        key: "head_seconds",
        kind: seconds!(server.timeouts.header),
        help: "Time for a request's head, and for the next request on an idle connection",
    },
    Setting {
        key: "body_seconds",
        kind: seconds!(server.timeouts.body),
        help: "Time for a request's whole body; then it is refused with 408",
    },
    Setting {
        key: "write_seconds",
        kind: seconds!(server.timeouts.write),
        help: "Time for a client to take a byte of what is written to it; then it is disconnected",
    },
    Setting {
        key: "keep_alive_seconds",
        kind: seconds!(server.timeouts.keep_alive),
        help: "Time between two comments of a silent event stream",
    },
    Setting {
        key: "drain_seconds",
        kind: seconds!(server.timeouts.drain),
        help: "Time that running requests have to end once the worker shuts down; then they are aborted",
    },
];
