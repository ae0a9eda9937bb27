//! The text format: each family under its names.

use std::fmt::Write;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nucleus_engine::generate::{DeviceMemory, Load};
use nucleus_engine::scheduler::SchedulerCounters;

use super::histogram::{Histogram, Snapshot};
use super::{Metrics, REASONS};

/// What a family is called: by us, by vLLM, by llama.cpp's server.
#[derive(Debug, Clone, Copy)]
struct Names {
    ours: &'static str,
    vllm: Option<&'static str>,
    llama_cpp: Option<&'static str>,
}

const fn ours(ours: &'static str) -> Names {
    Names {
        ours,
        vllm: None,
        llama_cpp: None,
    }
}

const fn also_vllm(ours: &'static str, vllm: &'static str) -> Names {
    Names {
        ours,
        vllm: Some(vllm),
        llama_cpp: None,
    }
}

const fn also_both(ours: &'static str, vllm: &'static str, llama_cpp: &'static str) -> Names {
    Names {
        ours,
        vllm: Some(vllm),
        llama_cpp: Some(llama_cpp),
    }
}

/// What the engine says of itself.
pub(super) struct Activity {
    pub(super) load: Load,
    pub(super) counters: SchedulerCounters,
    /// Of the device, if the model is on one.
    pub(super) memory: Option<DeviceMemory>,
}

/// A text being written. Series of ours and of vLLM's name the model, llama.cpp's have no labels.
struct Text {
    text: String,
    model: String,
}

/// All of it.
pub(super) fn render(metrics: &Metrics, engine: Activity, model: &str, uptime: Duration) -> String {
    let mut text = Text {
        text: String::new(),
        model: format!("model_name=\"{}\"", escape(model)),
    };
    gauges(&mut text, engine.load, uptime);
    device(&mut text, engine.memory);
    scheduling(&mut text, engine.counters);
    counters(&mut text, metrics);
    histograms(&mut text, metrics);
    rates(&mut text, metrics);
    text.text
}

fn gauges(text: &mut Text, load: Load, uptime: Duration) {
    let used = load.used_blocks as f64 / load.blocks.max(1) as f64;
    text.gauge(
        also_both(
            "nucleus_requests_running",
            "vllm:num_requests_running",
            "llamacpp:requests_processing",
        ),
        "Requests that run.",
        load.running as f64,
    );
    text.gauge(
        also_both(
            "nucleus_requests_waiting",
            "vllm:num_requests_waiting",
            "llamacpp:requests_deferred",
        ),
        "Requests that wait.",
        load.waiting as f64,
    );
    text.gauge(
        also_vllm("nucleus_kv_cache_usage_ratio", "vllm:kv_cache_usage_perc"),
        "Part of the KV cache that requests hold; 1 is all of it.",
        used,
    );
    text.gauge(
        ours("nucleus_uptime_seconds"),
        "Time since the worker began.",
        uptime.as_secs_f64(),
    );
}

/// What is not measured has no name: without a device there is nothing.
fn device(text: &mut Text, memory: Option<DeviceMemory>) {
    let Some(memory) = memory else { return };
    text.gauge(
        ours("nucleus_device_memory_total_bytes"),
        "Memory of the device.",
        memory.total_bytes as f64,
    );
    text.gauge(
        ours("nucleus_device_memory_free_bytes"),
        "Memory of the device that nobody has allocated.",
        memory.free_bytes as f64,
    );
}

fn scheduling(text: &mut Text, counters: SchedulerCounters) {
    let SchedulerCounters {
        admitted_tokens,
        reused_tokens,
        evictions,
        copies,
    } = counters;
    text.counter(
        also_vllm(
            "nucleus_prefix_cache_queries_total",
            "vllm:prefix_cache_queries_total",
        ),
        "Tokens of requests that were begun or resumed.",
        admitted_tokens as f64,
    );
    text.counter(
        also_vllm(
            "nucleus_prefix_cache_hits_total",
            "vllm:prefix_cache_hits_total",
        ),
        "Those of them that the KV cache held already.",
        reused_tokens as f64,
    );
    text.counter(
        also_vllm("nucleus_evictions_total", "vllm:num_preemptions_total"),
        "Times that a request was put aside for want of cache.",
        evictions as f64,
    );
    text.counter(
        ours("nucleus_kv_block_copies_total"),
        "Blocks of the KV cache that were shared and copied for one of their holders.",
        copies as f64,
    );
}

fn counters(text: &mut Text, metrics: &Metrics) {
    let value = |counter: &AtomicU64| counter.load(Ordering::Relaxed) as f64;
    text.counter(
        also_both(
            "nucleus_prompt_tokens_total",
            "vllm:prompt_tokens_total",
            "llamacpp:prompt_tokens_total",
        ),
        "Tokens in the prompts of requests that ended.",
        value(&metrics.prompt_tokens),
    );
    text.counter(
        also_both(
            "nucleus_generation_tokens_total",
            "vllm:generation_tokens_total",
            "llamacpp:tokens_predicted_total",
        ),
        "Tokens generated.",
        value(&metrics.generation_tokens),
    );
    let finished: Vec<f64> = metrics.finished.iter().map(value).collect();
    let series = |reason: &str, count: f64| (format!("finished_reason=\"{reason}\""), count);
    let by_ours: Vec<_> = REASONS
        .iter()
        .zip(&finished)
        .map(|((name, _), &count)| series(name, count))
        .collect();
    text.labelled(
        "nucleus_requests_finished_total",
        "Requests that ended, by reason.",
        &by_ours,
    );
    let mut by_vllm: Vec<(String, f64)> = Vec::new();
    for ((_, name), &count) in REASONS.iter().zip(&finished) {
        let label = series(name, count).0;
        match by_vllm.iter_mut().find(|(other, _)| *other == label) {
            Some((_, sum)) => *sum += count,
            None => by_vllm.push((label, count)),
        }
    }
    text.labelled(
        "vllm:request_success_total",
        "Requests that ended, by vLLM's reasons.",
        &by_vllm,
    );
    let answers = metrics
        .answers
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .clone();
    let answers: Vec<_> = answers
        .into_iter()
        .map(|((route, status), count)| {
            (
                format!("route=\"{}\",status=\"{status}\"", escape(&route)),
                count as f64,
            )
        })
        .collect();
    text.labelled(
        "nucleus_http_answers_total",
        "Answers, by route (empty: none) and status.",
        &answers,
    );
}

fn histograms(text: &mut Text, metrics: &Metrics) {
    let families: [(&Histogram, Names, &str); 8] = [
        (
            &metrics.first_token,
            also_vllm(
                "nucleus_time_to_first_token_seconds",
                "vllm:time_to_first_token_seconds",
            ),
            "From submission to the first token.",
        ),
        (
            &metrics.inter_token,
            also_vllm(
                "nucleus_inter_token_latency_seconds",
                "vllm:inter_token_latency_seconds",
            ),
            "Between two tokens.",
        ),
        (
            &metrics.whole,
            also_vllm(
                "nucleus_request_seconds",
                "vllm:e2e_request_latency_seconds",
            ),
            "From submission to the end.",
        ),
        (
            &metrics.queue,
            also_vllm("nucleus_queue_seconds", "vllm:request_queue_time_seconds"),
            "In the queue.",
        ),
        (
            &metrics.prefill,
            also_vllm(
                "nucleus_prefill_seconds",
                "vllm:request_prefill_time_seconds",
            ),
            "From the first step to the first token.",
        ),
        (
            &metrics.decode,
            also_vllm("nucleus_decode_seconds", "vllm:request_decode_time_seconds"),
            "From the first token to the last.",
        ),
        (
            &metrics.prompt_length,
            also_vllm(
                "nucleus_request_prompt_tokens",
                "vllm:request_prompt_tokens",
            ),
            "Tokens in a prompt.",
        ),
        (
            &metrics.output_length,
            also_vllm(
                "nucleus_request_generation_tokens",
                "vllm:request_generation_tokens",
            ),
            "Tokens that a request generated.",
        ),
    ];
    for (histogram, names, help) in families {
        text.histogram(names, help, &histogram.snapshot());
    }
}

/// What llama.cpp's server says beside that: times in all, and averages since the worker began.
fn rates(text: &mut Text, metrics: &Metrics) {
    let prefill = metrics.prefill.snapshot().sum;
    let decode = metrics.decode.snapshot().sum;
    let per_second = |tokens: &AtomicU64, seconds: f64| {
        let tokens = tokens.load(Ordering::Relaxed) as f64;
        if seconds > 0.0 { tokens / seconds } else { 0.0 }
    };
    for (name, kind, help, value) in [
        (
            "llamacpp:prompt_seconds_total",
            "counter",
            "Time of prompts.",
            prefill,
        ),
        (
            "llamacpp:tokens_predicted_seconds_total",
            "counter",
            "Time of generation.",
            decode,
        ),
        (
            "llamacpp:prompt_tokens_seconds",
            "gauge",
            "Prompt tokens a second, on average.",
            per_second(&metrics.prompt_tokens, prefill),
        ),
        (
            "llamacpp:predicted_tokens_seconds",
            "gauge",
            "Generated tokens a second, on average.",
            per_second(&metrics.generation_tokens, decode),
        ),
    ] {
        text.head(name, help, kind);
        text.sample(name, "", value);
    }
}

impl Text {
    fn gauge(&mut self, names: Names, help: &str, value: f64) {
        self.single(names, help, "gauge", value);
    }

    fn counter(&mut self, names: Names, help: &str, value: f64) {
        self.single(names, help, "counter", value);
    }

    fn single(&mut self, names: Names, help: &str, kind: &str, value: f64) {
        let labels = self.model.clone();
        for name in [Some(names.ours), names.vllm].into_iter().flatten() {
            self.head(name, help, kind);
            self.sample(name, &labels, value);
        }
        if let Some(name) = names.llama_cpp {
            self.head(name, help, kind);
            self.sample(name, "", value);
        }
    }

    /// A counter with labels beside the model's.
    fn labelled(&mut self, name: &str, help: &str, series: &[(String, f64)]) {
        self.head(name, help, "counter");
        for (labels, value) in series {
            let labels = format!("{},{labels}", self.model);
            self.sample(name, &labels, *value);
        }
    }

    fn histogram(&mut self, names: Names, help: &str, snapshot: &Snapshot) {
        let model = self.model.clone();
        for name in [Some(names.ours), names.vllm].into_iter().flatten() {
            self.head(name, help, "histogram");
            let bucket = format!("{name}_bucket");
            for (bound, count) in &snapshot.below {
                self.sample(&bucket, &format!("{model},le=\"{bound}\""), *count as f64);
            }
            let count = snapshot.count as f64;
            self.sample(&bucket, &format!("{model},le=\"+Inf\""), count);
            self.sample(&format!("{name}_sum"), &model, snapshot.sum);
            self.sample(&format!("{name}_count"), &model, count);
        }
    }

    fn head(&mut self, name: &str, help: &str, kind: &str) {
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &str, value: f64) {
        let _ = match labels {
            "" => writeln!(self.text, "{name} {value}"),
            labels => writeln!(self.text, "{name}{{{labels}}} {value}"),
        };
    }
}

/// A label's value: backslash, quote and line feed are written out.
fn escape(value: &str) -> String {
    value
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn text() -> String {
        let metrics = Metrics::default();
        metrics.first_token(Duration::from_millis(3));
        metrics.further_token(Duration::from_millis(1));
        metrics.finished("stop_sequence", Duration::from_millis(4));
        metrics.finished("stop", Duration::from_millis(4));
        metrics.answered("/execute", 200);
        let load = Load {
            running: 2,
            waiting: 1,
            used_blocks: 3,
            blocks: 4,
        };
        let counters = SchedulerCounters {
            reused_tokens: 7,
            ..SchedulerCounters::default()
        };
        let engine = Activity {
            load,
            counters,
            memory: Some(DeviceMemory {
                free_bytes: 5,
                total_bytes: 8,
            }),
        };
        render(&metrics, engine, "a \"b\"\\", Duration::from_secs(5))
    }

    #[test]
    fn a_family_has_every_name_of_it() {
        let text = text();
        let model = r#"{model_name="a \"b\"\\"}"#;
        for line in [
            format!("nucleus_requests_running{model} 2"),
            format!("vllm:num_requests_running{model} 2"),
            "llamacpp:requests_processing 2".into(),
            format!("vllm:kv_cache_usage_perc{model} 0.75"),
            format!("vllm:prefix_cache_hits_total{model} 7"),
            format!("nucleus_device_memory_total_bytes{model} 8"),
            format!("nucleus_device_memory_free_bytes{model} 5"),
            format!("vllm:generation_tokens_total{model} 2"),
            "llamacpp:tokens_predicted_total 2".into(),
            r#"nucleus_requests_finished_total{model_name="a \"b\"\\",finished_reason="stop_sequence"} 1"#.into(),
            r#"vllm:request_success_total{model_name="a \"b\"\\",finished_reason="stop"} 2"#.into(),
            r#"vllm:time_to_first_token_seconds_bucket{model_name="a \"b\"\\",le="0.0025"} 0"#.into(),
            r#"vllm:time_to_first_token_seconds_bucket{model_name="a \"b\"\\",le="0.005"} 1"#.into(),
            format!("vllm:time_to_first_token_seconds_sum{model} 0.003"),
            r#"nucleus_http_answers_total{model_name="a \"b\"\\",route="/execute",status="200"} 1"#.into(),
        ] {
            assert!(text.lines().any(|other| other == line), "{line}\nis not in\n{text}");
        }
    }

    /// The text format: HELP and TYPE once for each name, before its samples; every sample belongs to a family.
    #[test]
    fn the_format_is_sound() {
        let text = text();
        let mut families = BTreeSet::new();
        let mut current = "";
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                current = rest.split(' ').next().expect("a name");
                assert!(families.insert(current), "{current} comes twice");
            } else if !line.starts_with('#') {
                let name = line.split(['{', ' ']).next().expect("a name");
                assert!(name.starts_with(current), "{line} stands under {current}");
                let value = line.rsplit(' ').next().expect("a value");
                assert!(value.parse::<f64>().is_ok(), "{line}");
            }
        }
        assert!(families.len() > 25, "{families:?}");
    }

    /// R4.2: the page names every family.
    #[test]
    fn the_documentation_has_every_name() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/http-api.md");
        let page = std::fs::read_to_string(path).expect("the page is there");
        let text = text();
        let names = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
        for name in names.filter_map(|rest| rest.split(' ').next()) {
            assert!(
                page.contains(&format!("`{name}`")),
                "{name} is not documented"
            );
        }
    }

    #[test]
    fn every_reason_is_counted() {
        use nucleus_engine::sequence::FinishReason as R;
        for reason in [
            R::EndOfText,
            R::StopSequence("x".into()),
            R::StopToken(1),
            R::Length,
            R::TimeLimit,
            R::Cancelled,
            R::Aborted,
        ] {
            let known = REASONS.iter().any(|(name, _)| *name == reason.as_str());
            assert!(known, "{reason:?}");
        }
    }
}
