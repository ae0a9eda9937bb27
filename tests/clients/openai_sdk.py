#!/usr/bin/env python3
"""The official openai SDK against a worker with the bundled model (R5.1).

    target/clients/bin/python tests/clients/openai_sdk.py http://127.0.0.1:8080

Exit code 0: all passed (README.md).
"""

import asyncio
import math
import sys
import time
import typing

import openai
import pydantic
from openai import AsyncOpenAI, OpenAI

STORY = "Once upon a time"
CHAT = [
    {"role": "system", "content": "You tell stories."},
    {"role": "user", "content": "Tell me a story about a fox."},
]


class Worker:
    """A client for a worker."""

    def __init__(self, url):
        self.url = url + "/v1"
        self.client = OpenAI(base_url=self.url, api_key="none", max_retries=0)
        self.model = self.client.models.list().data[0].id


def refused(kind, call):
    """The error that the SDK makes of a refusal."""
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(f"not refused with {kind.__name__}")


def test_models(worker):
    model = worker.client.models.retrieve(worker.model)
    assert (model.id, model.object) == (worker.model, "model")
    error = refused(openai.NotFoundError, lambda: worker.client.models.retrieve("gpt-4"))
    assert error.code == "model_not_found"


def test_completion(worker):
    ask = dict(model=worker.model, prompt=STORY, max_tokens=12, temperature=0, seed=7)
    first = worker.client.completions.create(**ask)
    assert first.object == "text_completion" and first.id.startswith("cmpl-")
    assert first.choices[0].finish_reason == "length" and first.choices[0].text.strip()
    assert first.usage.completion_tokens == 12
    assert first.usage.total_tokens == first.usage.prompt_tokens + 12
    again = worker.client.completions.create(**ask)
    assert again.choices[0].text == first.choices[0].text
    assert again.system_fingerprint == first.system_fingerprint
    parts = list(worker.client.completions.create(**ask, stream=True))
    assert "".join(part.choices[0].text for part in parts) == first.choices[0].text
    assert parts[-1].choices[0].finish_reason == "length"


def test_prompts_and_choices(worker):
    token_ids = list(range(400, 404))
    for prompt, count in [([STORY, "The fox"], 4), (token_ids, 2), ([token_ids, token_ids], 4)]:
        answer = worker.client.completions.create(
            model=worker.model, prompt=prompt, n=2, max_tokens=4, seed=3, echo=True
        )
        assert [choice.index for choice in answer.choices] == list(range(count))
    assert answer.choices[0].text == answer.choices[2].text


def test_completion_logprobs(worker):
    answer = worker.client.completions.create(
        model=worker.model, prompt=STORY, max_tokens=5, logprobs=3, seed=1
    )
    logprobs = answer.choices[0].logprobs
    assert "".join(logprobs.tokens) == answer.choices[0].text
    assert logprobs.text_offset[0] == 0 and len(logprobs.text_offset) == 5
    for token, logprob, top in zip(logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs):
        assert 3 <= len(top) <= 4 and top[token] == logprob <= 0
        assert sum(map(math.exp, top.values())) < 1.0001


def test_stop_and_bias(worker):
    whole = worker.client.completions.create(
        model=worker.model, prompt=STORY, max_tokens=16, temperature=0
    ).choices[0].text
    word = whole.split()[3]
    stopped = worker.client.completions.create(
        model=worker.model, prompt=STORY, max_tokens=16, temperature=0, stop=[word, "\n\n"]
    ).choices[0]
    assert stopped.finish_reason == "stop" and stopped.text == whole[: whole.index(word)]
    biased = worker.client.completions.create(
        model=worker.model, prompt=STORY, max_tokens=4, logit_bias={"451": 100}
    ).choices[0]
    assert biased.text == " there" * 4


def test_chat(worker):
    ask = dict(model=worker.model, messages=CHAT, max_completion_tokens=24, seed=5)
    ask |= dict(temperature=0.8, top_p=0.9, frequency_penalty=0.2, presence_penalty=0.1)
    answer = worker.client.chat.completions.create(**ask, n=2)
    assert answer.object == "chat.completion" and len(answer.choices) == 2
    message = answer.choices[0].message
    assert message.role == "assistant" and message.content
    assert answer.choices[0].finish_reason in ("stop", "length")
    parts = list(
        worker.client.chat.completions.create(
            **ask, n=2, stream=True, stream_options={"include_usage": True}
        )
    )
    for choice in answer.choices:
        said = "".join(
            part.choices[0].delta.content or ""
            for part in parts
            if part.choices and part.choices[0].index == choice.index
        )
        assert said == choice.message.content
    assert parts[0].choices[0].delta.role == "assistant"
    assert parts[-1].usage == answer.usage and parts[-1].choices == []


def test_chat_stream_helper(worker):
    with worker.client.chat.completions.stream(
        model=worker.model, messages=CHAT, temperature=0, stop=["."], logprobs=True
    ) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= kinds
    choice = final.choices[0]
    assert choice.finish_reason == "stop" and choice.message.content
    spelled = "".join(token.token for token in choice.logprobs.content)
    assert spelled.startswith(choice.message.content + ".")


def test_chat_logprobs(worker):
    answer = worker.client.chat.completions.create(
        model=worker.model, messages=CHAT, max_tokens=6, logprobs=True, top_logprobs=4, seed=2
    )
    content = answer.choices[0].logprobs.content
    assert "".join(token.token for token in content) == answer.choices[0].message.content
    for token in content:
        assert bytes(token.bytes).decode() == token.token
        assert len(token.top_logprobs) == 4
        assert token.top_logprobs == sorted(token.top_logprobs, key=lambda top: -top.logprob)


def test_further_parameters(worker):
    ask = dict(model=worker.model, prompt=STORY, max_tokens=8)
    greedy = worker.client.completions.create(**ask, temperature=0).choices[0].text
    for extra in [{"top_k": 1}, {"min_p": 1.0}, {"repetition_penalty": 1.0, "top_k": 1}]:
        assert worker.client.completions.create(**ask, extra_body=extra).choices[0].text == greedy
    long = worker.client.completions.create(
        **ask, temperature=0, extra_body={"ignore_eos": True, "min_tokens": 8}
    )
    assert long.usage.completion_tokens == 8
    raw = worker.client.completions.with_raw_response.create(**ask, user="me", extra_body={"temprature": 1})
    assert "temprature" in raw.headers["x-nucleus-warnings"] and raw.parse().choices


def test_errors(worker):
    create = worker.client.completions.create
    error = refused(openai.BadRequestError, lambda: create(model=worker.model, prompt=STORY, temperature=3))
    assert (error.param, error.code, error.type) == ("temperature", "invalid_value", "invalid_request_error")
    error = refused(openai.BadRequestError, lambda: create(model=worker.model, prompt=STORY * 2000))
    assert error.code == "context_length_exceeded"
    refused(openai.NotFoundError, lambda: create(model="gpt-4", prompt=STORY))
    chat = worker.client.chat.completions.create
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "strin"}}}
    error = refused(
        openai.BadRequestError, lambda: chat(model=worker.model, messages=CHAT, response_format=form)
    )
    assert (error.param, error.code) == ("response_format", "invalid_value")
    tools = [{"type": "function", "function": {"name": "f"}}]
    error = refused(openai.BadRequestError, lambda: chat(model=worker.model, messages=CHAT, tools=tools))
    assert (error.param, error.code) == ("tools", "unsupported_value")


def test_structured_outputs(worker):
    class Animal(pydantic.BaseModel):
        model_config = pydantic.ConfigDict(extra="forbid")
        kind: typing.Literal["fox", "bear"]
        legs: int = pydantic.Field(ge=0, le=8)
        names: list[str] = pydantic.Field(max_length=2)

    for seed in range(3):
        answer = worker.client.chat.completions.parse(
            model=worker.model, messages=CHAT, seed=seed, response_format=Animal
        )
        animal = answer.choices[0].message.parsed
        assert animal.kind in ("fox", "bear") and 0 <= animal.legs <= 8
    choice = worker.client.completions.create(
        model=worker.model, prompt=STORY, extra_body={"structured_outputs": {"choice": ["yes", "no"]}}
    )
    assert choice.choices[0].text in ("yes", "no")


def test_async(worker):
    async def ask(seed):
        async with AsyncOpenAI(base_url=worker.url, api_key="none", max_retries=0) as client:
            stream = await client.chat.completions.create(
                model=worker.model, messages=CHAT, max_tokens=12, seed=seed, stream=True
            )
            return "".join([part.choices[0].delta.content or "" async for part in stream])

    async def all_of(seeds):
        return await asyncio.gather(*map(ask, seeds))

    together = asyncio.run(all_of(range(8)))
    assert together == [asyncio.run(ask(seed)) for seed in range(8)]
    assert len(set(together)) > 1


def main():
    worker = Worker(sys.argv[1])
    failed = []
    for name, test in list(globals().items()):
        if name.startswith("test_"):
            begun = time.monotonic()
            try:
                test(worker)
                outcome = "ok"
            except Exception as error:
                failed.append(name)
                outcome = f"FAILED: {error!r}"
            print(f"{name:28} {time.monotonic() - begun:6.2f} s  {outcome}", flush=True)
    print(f"openai {openai.__version__}, Python {sys.version.split()[0]}: {len(failed)} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
