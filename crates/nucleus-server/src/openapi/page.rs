//! The OpenAPI document as one page of HTML: no script, nothing from elsewhere.

use serde_json::{Map, Value};

use super::endpoint::Group;

const STYLE: &str = "\
:root{color-scheme:light dark;--line:#8884;--soft:#8881;--link:#1a73c9}\
body{font:16px/1.5 system-ui,sans-serif;max-width:64rem;margin:0 auto;padding:1rem}\
h1{font-size:1.6rem}h2{margin-top:2.5rem;border-bottom:1px solid var(--line)}\
details{border:1px solid var(--line);border-radius:6px;margin:.6rem 0}\
summary{cursor:pointer;padding:.5rem .8rem}details>div{padding:0 .8rem .8rem}\
code,pre{font:14px/1.4 ui-monospace,monospace}pre{background:var(--soft);padding:.6rem;border-radius:6px;overflow-x:auto;white-space:pre-wrap}\
table{border-collapse:collapse;width:100%}td,th{border-top:1px solid var(--line);padding:.3rem .5rem;text-align:left;vertical-align:top}\
td:first-child{white-space:nowrap}.verb{display:inline-block;min-width:3.2rem;font-weight:700}a{color:var(--link)}";

/// Where the page's commands call the worker, until [`for_host`] says where it is.
const HOST: &str = "localhost:8080";

/// The page as whoever asks that host for it sees it: its commands call the same host. A name that could be more than a name to a shell or
/// in HTML is passed over.
pub(super) fn for_host(page: &str, host: &str) -> String {
    let known = |byte: u8| byte.is_ascii_alphanumeric() || b".-:[]".contains(&byte);
    match !host.is_empty() && host.bytes().all(known) {
        true => page.replace(HOST, host),
        false => page.to_owned(),
    }
}

/// The page.
pub(super) fn render(document: &Value) -> String {
    let mut page = format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>Nucleus</title><style>{STYLE}</style></head><body><h1>Nucleus {}</h1><p>{}. The same as a file: \
         <a href=\"openapi.json\">openapi.json</a>.</p>",
        prose(&document["info"]["version"]),
        prose(&document["info"]["summary"]),
    );
    for group in Group::ALL {
        let name = group.name();
        let operations: Vec<String> = operations(document)
            .filter(|(_, _, operation)| operation["tags"][0] == name)
            .map(|(path, method, it)| operation(path, method, it))
            .collect();
        if !operations.is_empty() {
            let (name, about) = (escape(name), escape(group.description()));
            page.push_str(&format!("<h2>{name}</h2><p>{about}.</p>"));
            page.extend(operations);
        }
    }
    page.push_str("</body></html>");
    page
}

fn operations(document: &Value) -> impl Iterator<Item = (&str, &str, &Value)> {
    let paths = document["paths"].as_object().into_iter().flatten();
    paths.flat_map(|(path, methods)| {
        let methods = methods.as_object().into_iter().flatten();
        methods.map(move |(method, operation)| (path.as_str(), method.as_str(), operation))
    })
}

fn operation(path: &str, method: &str, operation: &Value) -> String {
    let mut html = format!(
        "<details id=\"{}\"><summary><span class=\"verb\">{}</span> <code>{}</code> {}</summary><div><p>{}</p>",
        escape(operation["operationId"].as_str().unwrap_or_default()),
        method.to_uppercase(),
        escape(path),
        prose(&operation["summary"]),
        prose(&operation["description"]),
    );
    let request = &operation["requestBody"]["content"]["application/json"]["schema"];
    if request.is_object() {
        html.push_str(&example(path, operation, &request["examples"][0]));
        html.push_str(&fields(request));
    }
    html.push_str("<table><tr><th>Answer</th><th></th><th></th></tr>");
    for (status, response) in operation["responses"].as_object().into_iter().flatten() {
        html.push_str(&answer(status, response));
    }
    html.push_str("</table></div></details>");
    html
}

/// A command that calls the endpoint, with a key where it needs one.
fn example(path: &str, operation: &Value, example: &Value) -> String {
    if example.is_null() {
        return String::new();
    }
    let needs_key = operation["responses"].get("401").is_some();
    let key = if needs_key {
        "-H \"Authorization: Bearer $NUCLEUS_API_KEY\" "
    } else {
        ""
    };
    let body = example.to_string().replace('\'', "'\\''");
    let path = escape(path);
    format!(
        "<pre>curl -N {}--json '{}' {HOST}{path}</pre>",
        escape(key),
        escape(&body)
    )
}

fn fields(schema: &Value) -> String {
    let required: Vec<&Value> = schema["required"]
        .as_array()
        .into_iter()
        .flatten()
        .collect();
    let mut html = String::from("<table><tr><th>Field</th><th>Value</th><th></th></tr>");
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        let default = if required.iter().any(|it| *it == name) {
            "; required".to_owned()
        } else {
            let default = property.get("default");
            default.map_or(String::new(), |default| format!("; default {default}"))
        };
        html.push_str(&format!(
            "<tr><td><code>{}</code></td><td>{}{}</td><td>{}</td></tr>",
            escape(name),
            escape(&value(property)),
            escape(&default),
            prose(&property["description"]),
        ));
    }
    html + "</table>"
}

fn answer(status: &str, response: &Value) -> String {
    let types: Vec<&str> = response["content"]
        .as_object()
        .map(Map::keys)
        .into_iter()
        .flatten()
        .map(String::as_str)
        .collect();
    format!(
        "<tr><td>{}</td><td><code>{}</code></td><td>{}</td></tr>",
        escape(status),
        escape(&types.join(", ")),
        prose(&response["description"]),
    )
}

/// What a value must be, in words: `integer in [0, 40]`.
fn value(schema: &Value) -> String {
    if let Some(shapes) = schema["anyOf"].as_array() {
        let shapes: Vec<String> = shapes.iter().map(value).collect();
        return shapes.join(" or ");
    }
    if let Some(name) = schema["$ref"].as_str() {
        return name.rsplit('/').next().unwrap_or_default().to_owned();
    }
    if let Some(names) = schema["enum"].as_array() {
        let names: Vec<String> = names.iter().map(Value::to_string).collect();
        return names.join(", ");
    }
    let kind = match &schema["type"] {
        Value::String(kind) => kind.clone(),
        Value::Array(kinds) => {
            let kinds: Vec<&str> = kinds.iter().filter_map(Value::as_str).collect();
            kinds.join(" or ")
        }
        _ => "any value".to_owned(),
    };
    if schema["items"].is_object() {
        return format!("{kind} of {}", value(&schema["items"]));
    }
    let bound = |names: [&str; 2]| names.into_iter().find_map(|name| schema.get(name));
    let low = bound(["minimum", "exclusiveMinimum"]);
    let high = bound(["maximum", "exclusiveMaximum"]);
    let (Some(low), Some(high)) = (low, high) else {
        return kind;
    };
    let open = if schema.get("exclusiveMinimum").is_some() {
        '('
    } else {
        '['
    };
    let close = if schema.get("exclusiveMaximum").is_some() {
        ')'
    } else {
        ']'
    };
    format!("{kind} in {open}{low}, {high}{close}")
}

/// Text with its code marked: what stands between backticks.
fn prose(text: &Value) -> String {
    let text = escape(text.as_str().unwrap_or_default());
    let mut parts = text.split('`');
    let mut html = parts.next().unwrap_or_default().to_owned();
    for (index, part) in parts.enumerate() {
        html.push_str(if index % 2 == 0 { "<code>" } else { "</code>" });
        html.push_str(part);
    }
    html
}

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn text_is_escaped_and_its_code_marked() {
        assert_eq!(
            prose(&json!("`a < b` & \"c\"")),
            "<code>a &lt; b</code> &amp; &quot;c&quot;"
        );
    }

    #[test]
    fn commands_call_the_host_that_was_asked() {
        let page = example("/execute", &json!({}), &json!({"prompt": "it's"}));
        let command = |host| {
            format!(
                "<pre>curl -N --json '{{&quot;prompt&quot;:&quot;it'\\''s&quot;}}' {host}/execute</pre>"
            )
        };
        assert_eq!(for_host(&page, "[::1]:9000"), command("[::1]:9000"));
        for host in ["", "a;b", "<b>", "a b"] {
            assert_eq!(for_host(&page, host), command(HOST), "{host}");
        }
        let with_key = example("/x", &json!({"responses": {"401": {}}}), &json!({}));
        assert!(with_key.contains("-H &quot;Authorization: Bearer $NUCLEUS_API_KEY&quot; --json"));
    }

    #[test]
    fn values_are_said_in_words() {
        let of = |schema| value(&schema);
        assert_eq!(
            of(json!({"type": "number", "exclusiveMinimum": 0.0, "maximum": 2.0})),
            "number in (0.0, 2.0]"
        );
        assert_eq!(
            of(
                json!({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]})
            ),
            "string or array of string"
        );
        assert_eq!(of(json!({"enum": ["a", "b"]})), "\"a\", \"b\"");
    }
}
