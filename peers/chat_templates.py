#!/usr/bin/env python3
"""Render llama.cpp's collection of chat templates as transformers does.

    chat_templates.py MODELS      MODELS is the folder that crates/nucleus-engine/tests/llama_cpp_files/fetch.sh fills

Writes crates/nucleus-engine/testdata/chat_templates.json: conversations, and for each template and conversation the prompt, or
null where transformers refuses it. What depends on the clock stands there as `⟦format⟧`.
"""
import argparse, json
from importlib.metadata import version
from pathlib import Path

from transformers.utils import chat_template_utils

OUTPUT = Path(__file__).resolve().parent.parent / "crates/nucleus-engine/testdata/chat_templates.json"
message = lambda role, content: {"role": role, "content": content}
CONVERSATIONS = [
    [message("user", "Hi there")],
    [message("system", "Be brief."), message("user", " 2 + 2? \n")],
    [message("user", "Hi"), message("assistant", "Hello!\n"), message("user", "Who <are> \"you\"?")],
    [message("system", "Be brief."), message("user", "a"), message("assistant", "b"), message("user", "é"), message("assistant", "d"), message("user", "e")],
]


def render(source, messages):
    template = chat_template_utils._compile_jinja_template(source)
    try:
        return template.render(messages=messages, tools=None, documents=None, add_generation_prompt=True, bos_token="<s>", eos_token="</s>",
                               strftime_now=lambda form: f"⟦{form}⟧")
    except Exception as error:
        print(f"  refused: {type(error).__name__}: {str(error)[:100]}")
        return None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path)
    templates = sorted(parser.parse_args().models.glob("templates/*.jinja"))
    rendered = {}
    for path in templates:
        print(path.name)
        rendered[path.stem] = [render(path.read_text(), messages) for messages in CONVERSATIONS]
    head = {"made_by": "peers/chat_templates.py", "transformers": version("transformers"), "jinja2": version("jinja2"), "templates": "llama-cpp-python 0.3.36"}
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(prompts, ensure_ascii=False)}" for name, prompts in rendered.items())
    OUTPUT.write_text(f'{{"header": {json.dumps(head)},\n"conversations": {json.dumps(CONVERSATIONS, ensure_ascii=False)},\n"prompts": {{\n{lines}\n}}}}\n')


if __name__ == "__main__":
    main()
