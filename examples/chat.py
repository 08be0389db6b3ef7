"""A conversation with a running server (`sensorium serve`), one line at a time: python examples/chat.py"""

import os

from openai import OpenAI

client = OpenAI(base_url=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1"), api_key="none")
model = client.models.list().data[0].id
messages = []
while True:
    try:
        messages.append({"role": "user", "content": input("> ")})
    except EOFError:
        break
    answer = ""
    for chunk in client.chat.completions.create(model=model, messages=messages, max_tokens=128, stream=True):
        text = chunk.choices[0].delta.content or ""
        print(text, end="", flush=True)
        answer += text
    print()
    messages.append({"role": "assistant", "content": answer})
