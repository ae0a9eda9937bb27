//! `GET /health`: whether the server takes requests, with what, and how busy it is.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use nucleus_engine::generate::Load;
use nucleus_engine::model::ModelSpec;
use schemars::JsonSchema;
use serde::Serialize;

use crate::app::AppState;
use crate::openai::system_fingerprint;
use crate::openapi::{Endpoint, Group};

/// The state of the server.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Health {
    /// `ok`, `draining` once the server shuts down, or `failed` when nothing can be computed any more.
    status: &'static str,
    /// Why it has failed; else null.
    reason: Option<String>,
    version: &'static str,
    versions: Versions,
    uptime_s: u64,
    /// Where the model computes: `cpu`, or `cuda:0`.
    device: String,
    /// What that device calls itself; null for the CPU.
    device_name: Option<String>,
    /// What answers of OpenAI's endpoints carry: as long as it stays, a seed gives the same tokens.
    system_fingerprint: String,
    model: ModelHealth,
    load: LoadHealth,
    memory: Memory,
}

/// Versions that decide what a request gives.
#[derive(Debug, Serialize, JsonSchema)]
struct Versions {
    nucleus: &'static str,
    /// Of the sampling contract.
    sampling_contract: u32,
    /// The machine's architecture and system, as `x86_64-linux`.
    platform: String,
}

#[derive(Debug, Serialize, JsonSchema)]
struct ModelHealth {
    name: String,
    architecture: String,
    quantization: String,
    parameters: u64,
    vocab_size: usize,
    context_length: usize,
}

#[derive(Debug, Serialize, JsonSchema)]
struct LoadHealth {
    running: usize,
    waiting: usize,
    used_kv_blocks: usize,
    kv_blocks: usize,
}

/// Bytes in use.
#[derive(Debug, Serialize, JsonSchema)]
struct Memory {
    /// Of the whole process; null where the system does not say.
    rss_bytes: Option<u64>,
    weight_bytes: u64,
    kv_cache_bytes: u64,
    /// Of the cache, what requests hold.
    used_kv_cache_bytes: u64,
    /// All memory of the device; null for the CPU, and when the device does not answer.
    device_total_bytes: Option<u64>,
    /// What of it nobody has allocated, this process or another.
    device_free_bytes: Option<u64>,
}

pub(crate) fn endpoints() -> [Endpoint; 1] {
    [Endpoint::get("/health", health)
        .group(Group::Worker)
        .says(
            "Says how the worker is",
            "Whether it takes requests, with what model, and how busy it is. Needs no key.",
        )
        .answers::<Health>(200, "The worker takes requests")
        .answers::<Health>(503, "The worker shuts down, or has failed")]
}

/// 200 while the server takes requests, 503 once it drains or has failed.
async fn health(State(state): State<AppState>) -> (StatusCode, Json<Health>) {
    let reason = state.engine.failure().map(str::to_owned);
    let (code, status) = match reason {
        Some(_) => (StatusCode::SERVICE_UNAVAILABLE, "failed"),
        None if state.shutdown.is_serving() => (StatusCode::OK, "ok"),
        None => (StatusCode::SERVICE_UNAVAILABLE, "draining"),
    };
    let device_memory = state.engine.device_memory();
    let spec = state.engine.spec();
    let load = state.engine.load();
    let kv_cache_bytes = state.engine.kv_layout().bytes(spec);
    let health = Health {
        status,
        reason,
        version: env!("CARGO_PKG_VERSION"),
        versions: Versions {
            nucleus: env!("CARGO_PKG_VERSION"),
            sampling_contract: nucleus_sampling::CONTRACT_VERSION,
            platform: format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS),
        },
        uptime_s: state.started.elapsed().as_secs(),
        device: state.engine.device().to_string(),
        device_name: state.engine.device_name().map(str::to_owned),
        system_fingerprint: system_fingerprint(&state),
        model: spec.into(),
        load: load.into(),
        memory: Memory {
            rss_bytes: resident_bytes(),
            weight_bytes: spec.weight_bytes,
            kv_cache_bytes,
            used_kv_cache_bytes: kv_cache_bytes / load.blocks.max(1) as u64
                * load.used_blocks as u64,
            device_total_bytes: device_memory.map(|memory| memory.total_bytes),
            device_free_bytes: device_memory.map(|memory| memory.free_bytes),
        },
    };
    (code, Json(health))
}

impl From<&ModelSpec> for ModelHealth {
    fn from(spec: &ModelSpec) -> Self {
        Self {
            name: spec.name.clone(),
            architecture: spec.architecture.clone(),
            quantization: spec.quantization.clone(),
            parameters: spec.parameters,
            vocab_size: spec.vocab_size,
            context_length: spec.context_length,
        }
    }
}

impl From<Load> for LoadHealth {
    fn from(load: Load) -> Self {
        Self {
            running: load.running,
            waiting: load.waiting,
            used_kv_blocks: load.used_blocks,
            kv_blocks: load.blocks,
        }
    }
}

/// Memory of this process that is in RAM, where Linux's `/proc` says it.
fn resident_bytes() -> Option<u64> {
    parse_resident_bytes(&std::fs::read_to_string("/proc/self/status").ok()?)
}

fn parse_resident_bytes(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resident_memory_is_read_from_proc() {
        assert_eq!(
            parse_resident_bytes("Name:\tx\nVmRSS:\t    1234 kB\nThreads: 1\n"),
            Some(1_263_616)
        );
        assert_eq!(parse_resident_bytes("Name:\tx\n"), None);
    }
}
