#!/usr/bin/env bash
# llama.cpp-style curl against a running worker with the bundled model (R5.1).
#
#     tests/clients/llamacpp_curl.sh http://127.0.0.1:8080
#
# The commands are those of llama.cpp's server README, with `-d` and a Content-Type header. Needs curl and python3. Exit code 0: all passed.
set -euo pipefail

url=${1:-${NUCLEUS_URL:-}}
: "${url:?usage: $0 URL, the address of a running worker, such as http://127.0.0.1:8080}"
url=${url%/}

post() {
    curl --silent --show-error --fail-with-body --request POST --url "$url$1" \
        --header "Content-Type: application/json" --data "$2"
}

# Reads an answer from standard input as `a` (the lines of a stream as `parts`) and runs assertions on it.
check() {
    local name=$1
    NUCLEUS_CHECK=$2 python3 -c '
import json, os, sys
text = sys.stdin.read()
try:
    a = json.loads(text)
except ValueError:
    parts = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: ")]
exec(os.environ["NUCLEUS_CHECK"])
' || {
        echo "FAILED: $name" >&2
        exit 1
    }
    echo "ok: $name"
}

post /completion '{"prompt": "Once upon a time","n_predict": 16}' | check "a completion" '
assert a["content"] and a["stop"] is True, a
assert 0 < a["tokens_predicted"] <= 16
assert a["stop_type"] in ("limit", "eos")
assert a["generation_settings"]["temperature"] == 0.8 and a["generation_settings"]["top_k"] == 40
assert a["generation_settings"]["samplers"][0] == "penalties"
assert a["timings"]["predicted_n"] == a["tokens_predicted"]
assert a["tokens"] == []
'

greedy='{"prompt": "Once upon a time", "n_predict": 12, "temperature": 0, "return_tokens": true, "cache_prompt": true'
whole=$(post /completion "$greedy}")
check "greedy text repeats" '
assert a["tokens_predicted"] == 12 and len(a["tokens"]) == 12, a
' <<<"$whole"
post /completion "$greedy, \"stream\": true}" | WHOLE=$whole check "a stream adds up to the whole" '
whole = json.loads(os.environ["WHOLE"])
assert "".join(part["content"] for part in parts) == whole["content"], parts
assert [part["tokens"][0] for part in parts[:-1]] == whole["tokens"]
assert [part["stop"] for part in parts] == [False] * 12 + [True]
assert parts[-1]["stop_type"] == "limit" and "timings" in parts[-1]
'

post /completion '{"prompt": "Once upon a time", "n_predict": 64, "temperature": 0, "stop": [" king", "."]}' | check "a stop word" '
assert a["stop_type"] == "word" and a["stopping_word"] in (" king", "."), a
assert a["stopping_word"] not in a["content"]
'

post /completion '{"prompt": "Once upon a time", "n_predict": 2, "seed": 42, "n_probs": 3}' | check "probabilities" '
assert len(a["completion_probabilities"]) == a["tokens_predicted"]
for token in a["completion_probabilities"]:
    assert token["logprob"] <= 0 and len(token["top_logprobs"]) == 3
    assert bytes(token["bytes"]).decode() == token["token"]
    logprobs = [top["logprob"] for top in token["top_logprobs"]]
    assert logprobs == sorted(logprobs, reverse=True)
'
post /completion '{"prompt": "Once upon a time", "n_predict": 2, "seed": 42, "n_probs": 10, "post_sampling_probs": true, "top_k": 4, "top_p": 1, "min_p": 0}' |
    check "probabilities after sampling" '
for token in a["completion_probabilities"]:
    assert len(token["top_probs"]) == 4
    assert abs(sum(top["prob"] for top in token["top_probs"]) - 1) < 1e-5
'

post /completion '{"prompt": ["Once upon a time", [451, 311, "was a"]], "n_predict": 4, "n_cmpl": 2, "samplers": "kpmt", "logit_bias": [[" king", false], [" the", -0.5]], "repeat_penalty": 1.1, "mirostat": 0}' |
    check "prompts, choices, letters and biases" '
assert [answer["index"] for answer in a] == [0, 1, 2, 3]
assert a[0]["generation_settings"]["samplers"] == ["top_k", "top_p", "min_p", "temperature"]
assert a[0]["generation_settings"]["repeat_penalty"] == 1.1
assert all(" king" not in answer["content"] for answer in a)
'

post /completion '{"prompt": "Once upon a time", "n_predict": 8, "response_fields": ["content", "generation_settings/n_predict"]}' | check "fields" '
assert sorted(a) == ["content", "n_predict"] and a["n_predict"] == 8, a
'

tokens=$(post /tokenize '{"content": "Once upon a time", "add_special": false, "with_pieces": false}')
check "tokens" 'assert all(isinstance(token, int) for token in a["tokens"]) and a["tokens"]' <<<"$tokens"
post /detokenize "$tokens" | check "and back" 'assert a["content"] == "Once upon a time", a'
post /tokenize '{"content": "Once upon a time", "with_pieces": true}' | check "pieces" '
assert "".join(token["piece"] for token in a["tokens"]) == "Once upon a time", a
'

conversation='{"messages": [{"role": "user", "content": "Tell me a story."}]}'
prompt=$(post /apply-template "$conversation")
check "a template" 'assert "Tell me a story." in a["prompt"], a' <<<"$prompt"
request=$(python3 -c 'import json, sys; print(json.dumps({**json.load(sys.stdin), "n_predict": 8}))' <<<"$prompt")
post /completion "$request" | check "a conversation by hand" 'assert a["tokens_predicted"] > 0'

curl --silent --fail "$url/props" | check "props" '
assert a["total_slots"] > 0 and a["default_generation_settings"]["n_ctx"] > 0
assert a["default_generation_settings"]["params"]["min_p"] == 0.05 and a["chat_template"]
'
curl --silent --fail "$url/slots" | check "slots" 'assert all("is_processing" in slot for slot in a)'
curl --silent --fail "$url/health" | check "health" 'assert a["status"] == "ok"'

grammar='root ::= animal (\", \" animal){1,2} \"!\"\nanimal ::= \"a \" (\"fox\" | \"hen\")'
post /completion '{"prompt": "I saw ", "n_predict": 60, "grammar": "'"$grammar"'"}' | check "a grammar" '
import re
assert re.fullmatch("a (fox|hen)(, a (fox|hen)){1,2}!", a["content"]), a
assert a["generation_settings"]["grammar"].startswith("root ::=")
'

refused=$(post /completion '{"prompt": "x", "grammar": "root ::= \"x"}' 2>/dev/null || true)
check "an unsound grammar is refused by name" 'assert a["error"]["param"] == "grammar" and "line 1" in a["error"]["message"], a' <<<"$refused"

echo "all checks passed"
