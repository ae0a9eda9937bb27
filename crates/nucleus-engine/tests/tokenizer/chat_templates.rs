//! llama.cpp's collection of chat templates, rendered as transformers renders them (`peers/chat_templates.py`).

use std::collections::BTreeMap;

use nucleus_engine::chat_template::{ChatTemplate, Message};

use super::llama_cpp_files::{NOT_RUN, models};
use super::*;

/// Templates that go through the tools, of which there are none: an error in Python, and nothing here.
const LENIENT: [&str; 3] = [
    "CohereForAI-c4ai-command-r-plus-tool_use",
    "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use",
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use",
];

#[derive(Deserialize)]
struct Rendered {
    conversations: Vec<Vec<Message>>,
    /// By template; a prompt for each conversation, or none where transformers refuses it.
    prompts: BTreeMap<String, Vec<Option<String>>>,
}

/// The prompt with the clock's formats in it replaced by what the clock says.
fn with_clock(prompt: &str) -> String {
    let mut text = String::new();
    let mut rest = prompt;
    while let Some((before, after)) = rest.split_once('⟦') {
        let (format, after) = after.split_once('⟧').unwrap();
        let now = ChatTemplate::new(&format!("{{{{ strftime_now({format:?}) }}}}")).unwrap();
        text.push_str(before);
        text.push_str(&now.render(&[]).unwrap());
        rest = after;
    }
    text + rest
}

#[test]
fn every_template_makes_the_prompts_of_transformers() {
    let Some(folder) = models() else {
        println!("{NOT_RUN}");
        return;
    };
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/chat_templates.json");
    let rendered: Rendered = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    assert!(rendered.prompts.len() >= 70);
    let mut failures = Vec::new();
    let (mut same, mut refused) = (0, 0);
    for (name, prompts) in &rendered.prompts {
        let source =
            std::fs::read_to_string(folder.join(format!("templates/{name}.jinja"))).unwrap();
        let template = match ChatTemplate::new(&source) {
            Ok(template) => template.with_tokens("<s>", "</s>"),
            Err(error) => {
                failures.push(format!("{name}: {error}"));
                continue;
            }
        };
        for (messages, expected) in rendered.conversations.iter().zip(prompts) {
            match (template.render(messages), expected) {
                (Ok(prompt), Some(expected)) if prompt == with_clock(expected) => same += 1,
                (Err(_), None) => refused += 1,
                (Ok(_), None) if LENIENT.contains(&name.as_str()) => {}
                (prompt, expected) => failures.push(format!("{name}:\n{prompt:?}\n{expected:?}")),
            }
        }
    }
    println!("{same} prompts are the same, {refused} conversations are refused by both");
    assert!(
        failures.is_empty(),
        "{}\n{} differ",
        failures.join("\n\n"),
        failures.len()
    );
}
