use super::*;

fn render(source: &str, messages: &[(&str, &str)]) -> Result<String, ChatTemplateError> {
    let messages: Vec<Message> = messages
        .iter()
        .map(|&(role, content)| Message::new(role, content))
        .collect();
    ChatTemplate::new(source)?.render(&messages)
}

fn text(source: &str) -> String {
    render(source, &[("user", "Hi"), ("assistant", "Hello")]).unwrap()
}

#[test]
fn messages_are_rendered_in_order() {
    assert_eq!(
        text("{% for m in messages %}<{{ m.role }}>{{ m['content'] }}{% endfor %}"),
        "<user>Hi<assistant>Hello"
    );
}

#[test]
fn the_generation_prompt_is_added_unless_it_is_not_wanted() {
    let template = ChatTemplate::new("{% if add_generation_prompt %}go{% endif %}").unwrap();
    assert_eq!(template.render(&[]).unwrap(), "go");
    assert_eq!(
        template
            .render_with(
                &[],
                RenderOptions {
                    add_generation_prompt: false
                }
            )
            .unwrap(),
        ""
    );
}

#[test]
fn blocks_are_trimmed() {
    assert_eq!(
        text("{% if true %}\n  {% if true %}\na\n  {% endif %}\n{% endif %}\nb"),
        "a\nb"
    );
}

#[test]
fn python_methods_and_loop_controls_exist() {
    assert_eq!(text("{{ ' a,b '.strip().split(',')[1].upper() }}"), "B");
    assert_eq!(
        text(
            "{% for m in messages %}{% if loop.index0 == 1 %}{% break %}{% endif %}{{ m.get('role') }}{% endfor %}"
        ),
        "user"
    );
    assert_eq!(
        text(
            "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}"
        ),
        "2"
    );
}

#[test]
fn tools_and_documents_are_none() {
    assert_eq!(
        text(
            "{{ tools is none }} {{ documents is none }} {{ tools is iterable }} {{ nothing is defined }}"
        ),
        "True True False False"
    );
}

#[test]
fn nothing_is_escaped() {
    assert_eq!(
        render("{{ messages[0].content }}", &[("user", "<b> & \"'")]).unwrap(),
        "<b> & \"'"
    );
}

#[test]
fn generation_tags_mark_nothing() {
    assert_eq!(
        text("a {%- generation %} b {%- endgeneration -%} c"),
        "a bc"
    );
    assert_eq!(
        text("{% if add_generation_prompt %}x{% endif %}{{ 'generation' }}"),
        "xgeneration"
    );
}

#[test]
fn a_refusal_is_the_templates_word() {
    let error = render("{{ raise_exception('roles must alternate') }}", &[]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the chat template refuses the conversation: roles must alternate"
    );
    let inside = "{% macro f() %}{{ raise_exception('no') }}{% endmacro %}{{ f() }}";
    assert!(
        matches!(render(inside, &[]), Err(ChatTemplateError::Refused { message }) if message == "no")
    );
}

#[test]
fn an_unsound_template_is_refused_when_it_is_loaded() {
    for source in [
        "{% if %}",
        "{{",
        "{% for x in y %}",
        "{% nonsense %}",
        "{{ 'a }}",
        "{% generation %}",
    ] {
        assert!(
            matches!(ChatTemplate::new(source), Err(ChatTemplateError::Syntax(_))),
            "{source:?}"
        );
    }
}

#[test]
fn a_failure_says_where() {
    let error = render("\n\n{{ messages.nothing.more }}", &[])
        .unwrap_err()
        .to_string();
    assert_eq!(
        error,
        "the chat template fails: undefined value (in chat_template:3)"
    );
}

#[test]
fn other_templates_are_out_of_reach() {
    for source in [
        "{% include '/etc/passwd' %}",
        "{% extends 'x' %}",
        "{% import 'x' as y %}",
    ] {
        assert!(
            matches!(render(source, &[]), Err(ChatTemplateError::Render(_))),
            "{source:?}"
        );
    }
}

// Hostile templates.

#[test]
fn a_template_of_many_steps_ends() {
    let nested = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}";
    assert!(matches!(
        render(nested, &[]),
        Err(ChatTemplateError::TooManySteps)
    ));
    assert!(matches!(
        render("{{ range(10**9) }}", &[]),
        Err(ChatTemplateError::Render(_))
    ));
}

#[test]
fn a_recursion_without_end_ends() {
    for source in [
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% macro f(x) %}{{ g(x) }}{% endmacro %}{% macro g(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
        "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}",
        "{% include 'chat_template' %}",
    ] {
        assert!(
            matches!(render(source, &[]), Err(ChatTemplateError::Render(_))),
            "{source:?}"
        );
    }
}

/// Blocks and brackets are refused by the library; chains of operators it takes, and recurses over them.
#[test]
fn deep_nesting_is_refused_or_rendered() {
    for source in [
        "{% if 1 %}".repeat(2000) + &"{% endif %}".repeat(2000),
        format!("{{{{ {}1{} }}}}", "(".repeat(20_000), ")".repeat(20_000)),
        format!("{{{{ {}1{} }}}}", "[".repeat(20_000), "]".repeat(20_000)),
    ] {
        assert!(matches!(
            render(&source, &[]),
            Err(ChatTemplateError::Syntax(_))
        ));
    }
    for source in [
        format!("{{{{ {}1 }}}}", "-".repeat(65_000)),
        format!("{{{{ {}1 }}}}", "not ".repeat(16_000)),
        format!("{{{{ {}1 }}}}", "1+".repeat(32_000)),
        format!("{{{{ {}1 }}}}", "1~".repeat(32_000)),
        format!("{{{{ {}1 }}}}", "1**".repeat(21_000)),
        format!("{{{{ 1{} }}}}", "|e".repeat(32_000)),
        format!("{{{{ a{} }}}}", ".b".repeat(32_000)),
        format!("{{{{ a{} }}}}", "()".repeat(32_000)),
        format!("{{{{ {}1 }}}}", "1 if 1 else ".repeat(5_400)),
        format!("{{% if 0 %}}{}{{% endif %}}", "{%elif 0%}".repeat(6_500)),
    ] {
        // What it renders to is of no interest, that it does is.
        assert!(matches!(
            render(&source, &[]),
            Ok(_) | Err(ChatTemplateError::Render(_))
        ));
    }
}

/// The steps bound the depth of values, here about 300,000 lists or 110,000 maps, and the stack holds the deepest.
#[test]
fn deep_values_are_no_deeper_than_the_stack() {
    for (open, close, rounds) in [("[", "]", 7500), ("{'a': ", "}", 2800)] {
        let deeper = open.repeat(40) + "ns.x" + &close.repeat(40);
        let grow =
            format!("{{% for i in range({rounds}) %}}{{% set ns.x = {deeper} %}}{{% endfor %}}");
        for use_it in ["{{ ns.x }}", "{{ ns.x|tojson }}"] {
            let source = format!("{{% set ns = namespace(x=1) %}}{grow}{use_it}");
            assert!(render(&source, &[]).is_ok(), "{open} {use_it}");
        }
    }
}

#[test]
fn work_that_takes_too_long_is_given_up() {
    let error = apart(Duration::from_millis(10), || {
        std::thread::sleep(Duration::from_secs(2));
    })
    .unwrap_err();
    assert_eq!(
        error.to_string(),
        "the chat template takes longer than 10 seconds"
    );
}

#[test]
fn a_prompt_that_is_too_large_is_refused() {
    let source = "{% set s = 'x' * 10000000 %}{% for i in range(10) %}{{ s }}{% endfor %}";
    assert!(matches!(
        render(source, &[]),
        Err(ChatTemplateError::PromptTooLarge)
    ));
}

#[test]
fn a_template_that_is_too_large_is_refused() {
    let error = ChatTemplate::new(&" ".repeat(MAX_TEMPLATE_BYTES + 1))
        .unwrap_err()
        .to_string();
    assert_eq!(
        error,
        "the chat template has 65537 bytes; it may have 65536"
    );
}

#[test]
fn messages_that_are_too_large_are_refused() {
    let huge = "x".repeat(MAX_PROMPT_BYTES + 1);
    assert!(matches!(
        render("", &[("user", &huge)]),
        Err(ChatTemplateError::MessagesTooLarge { .. })
    ));
}

#[test]
fn long_conversations_are_rendered() {
    let messages = vec![("user", "Hi"); 5_000];
    let source = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' }}{% endfor %}";
    assert_eq!(
        render(source, &messages).unwrap().len(),
        5_000 * "<|im_start|>user\nHi<|im_end|>".len()
    );
}

#[test]
fn a_panic_is_an_error() {
    let error = apart(TIME_LIMIT, || -> () { panic!("on purpose") }).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the chat template cannot be run: it panicked"
    );
}

// Whole templates.

#[test]
fn the_bundled_models_template() {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../models/little-storyteller/little-storyteller-15m-Q8_0.gguf"
    );
    let file = crate::gguf::ModelFile::open(path).unwrap();
    let template = ChatTemplate::from_gguf(file.metadata()).unwrap().unwrap();
    let prompt = template
        .render(&[
            Message::new("user", "Tell me a story."),
            Message::new("assistant", "Once."),
        ])
        .unwrap();
    let expected = "<|im_start|>user\nTell me a story.<|im_end|>\n<|im_start|>assistant\nOnce.<|im_end|>\n<|im_start|>assistant\n";
    assert_eq!(prompt, expected);
}

#[test]
fn the_names_of_special_tokens_are_known() {
    let metadata = |template: &str, bos| {
        let tokens = ["<s>", "</s>"].into_iter().collect();
        Metadata::new([
            (
                "tokenizer.chat_template".to_owned(),
                crate::gguf::Value::String(template.to_owned()),
            ),
            (
                "tokenizer.ggml.tokens".to_owned(),
                crate::gguf::Value::Strings(tokens),
            ),
            (
                "tokenizer.ggml.bos_token_id".to_owned(),
                crate::gguf::Value::U32(bos),
            ),
            (
                "tokenizer.ggml.eos_token_id".to_owned(),
                crate::gguf::Value::U32(1),
            ),
        ])
    };
    let render = |bos| {
        let metadata = metadata("[{{ bos_token }}{{ eos_token }}]", bos);
        ChatTemplate::from_gguf(&metadata)
            .unwrap()
            .unwrap()
            .render(&[])
            .unwrap()
    };
    assert_eq!(render(0), "[<s></s>]");
    assert_eq!(render(7), "[</s>]");
}

#[test]
fn a_file_without_a_template_has_none() {
    assert!(
        ChatTemplate::from_gguf(&Metadata::default())
            .unwrap()
            .is_none()
    );
}
