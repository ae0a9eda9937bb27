#!/usr/bin/env python3
"""LangChain's OpenAI client against a worker with the bundled model (R5.1).

    target/clients/bin/python tests/clients/langchain_client.py http://127.0.0.1:8080

Exit code 0: all passed (README.md).
"""

import asyncio
import sys
import time
from importlib.metadata import version

from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_openai import ChatOpenAI, OpenAI

TALK = [SystemMessage("You tell stories."), HumanMessage("Tell me a story about a fox.")]
STORY = "Once upon a time"


def chat(url, **settings):
    settings = dict(model=MODEL, max_tokens=12, temperature=0, max_retries=0) | settings
    return ChatOpenAI(base_url=url + "/v1", api_key="none", **settings)


def text(url, **settings):
    settings = dict(model=MODEL, max_tokens=8, temperature=0, max_retries=0) | settings
    return OpenAI(base_url=url + "/v1", api_key="none", **settings)


def test_invoke(url):
    answer = chat(url).invoke(TALK)
    assert isinstance(answer, AIMessage) and answer.content
    usage = answer.usage_metadata
    assert usage["output_tokens"] <= 12
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    assert answer.response_metadata["finish_reason"] in ("stop", "length")
    assert answer.response_metadata["model_name"] == MODEL
    assert answer.response_metadata["system_fingerprint"].startswith("fp_")


def test_stream_is_the_answer(url):
    model = chat(url, stream_usage=True)
    parts = list(model.stream(TALK))
    whole = parts[0]
    for part in parts[1:]:
        whole += part
    answer = model.invoke(TALK)
    assert len(parts) > 3 and whole.content == answer.content
    assert whole.usage_metadata == answer.usage_metadata


def test_a_conversation_goes_on(url):
    model = chat(url)
    first = model.invoke(TALK)
    second = model.invoke(TALK + [first, HumanMessage("Go on.")])
    assert second.content and second.usage_metadata["input_tokens"] > first.usage_metadata["input_tokens"]


def test_chain_and_batch(url):
    prompt = ChatPromptTemplate.from_messages([("system", "You tell stories."), ("human", "Tell me of a {animal}.")])
    chain = prompt | chat(url) | StrOutputParser()
    animals = [{"animal": animal} for animal in ("fox", "bear", "king")]
    together = chain.batch(animals)
    assert together == [chain.invoke(animal) for animal in animals]


def test_parameters(url):
    stopped = chat(url, max_tokens=64).bind(stop=["."]).invoke(TALK)
    assert "." not in stopped.content and stopped.response_metadata["finish_reason"] == "stop"
    seeded = chat(url, temperature=0.9, top_p=0.95, seed=7, frequency_penalty=0.1, presence_penalty=0.1)
    assert seeded.invoke(TALK).content == seeded.invoke(TALK).content
    further = chat(url, extra_body={"top_k": 1}, temperature=1.0)
    assert further.invoke(TALK).content == chat(url).invoke(TALK).content


def test_logprobs(url):
    answer = chat(url, logprobs=True, top_logprobs=2).invoke(TALK)
    content = answer.response_metadata["logprobs"]["content"]
    assert "".join(token["token"] for token in content) == answer.content
    assert all(len(token["top_logprobs"]) == 2 for token in content)


def test_texts(url):
    model = text(url)
    story = model.invoke(STORY)
    assert story and "".join(model.stream(STORY)) == story
    stories = model.generate([STORY, "The fox"], stop=["\n\n"])
    assert len(stories.generations) == 2 and stories.generations[0][0].text == story
    assert stories.llm_output["token_usage"]["total_tokens"] > 0


def test_async(url):
    async def all_of():
        model = chat(url)
        answers = await asyncio.gather(*(model.ainvoke(TALK) for _ in range(4)))
        streamed = "".join([part.content async for part in model.astream(TALK)])
        return {answer.content for answer in answers} | {streamed}

    assert len(asyncio.run(all_of())) == 1


def main():
    global MODEL
    url = sys.argv[1]
    from openai import OpenAI as Sdk

    MODEL = Sdk(base_url=url + "/v1", api_key="none").models.list().data[0].id
    failed = []
    for name, test in list(globals().items()):
        if name.startswith("test_"):
            begun = time.monotonic()
            try:
                test(url)
                outcome = "ok"
            except Exception as error:
                failed.append(name)
                outcome = f"FAILED: {error!r}"
            print(f"{name:28} {time.monotonic() - begun:6.2f} s  {outcome}", flush=True)
    print(f"langchain-openai {version('langchain-openai')}: {len(failed)} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
