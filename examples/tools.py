"""Let the model call a function, and tell it the result: python examples/tools.py [QUESTION]

Needs `sensorium serve`; to let a model of your own choose by itself, add the flags of docs/http-api.md, "Tools".
"""

import json
import os
import sys

from openai import OpenAI

question = sys.argv[1] if len(sys.argv) > 1 else "What is the weather for the next three days?"
schema = {
    "type": "object",
    "properties": {"days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["days"],
    "additionalProperties": False,
}
tool = {"type": "function", "function": {"name": "weather", "description": "The forecast", "parameters": schema}}

client = OpenAI(base_url=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1"), api_key="none")
model = client.models.list().data[0].id
messages = [{"role": "user", "content": question}]
answer = client.chat.completions.create(model=model, messages=messages, tools=[tool], tool_choice="required")
message = answer.choices[0].message
messages.append(message)
for call in message.tool_calls:
    print(call.function.name, call.function.arguments)
    forecast = ["rain"] * json.loads(call.function.arguments)["days"]
    messages.append({"role": "tool", "tool_call_id": call.id, "content": ", ".join(forecast)})
last = client.chat.completions.create(model=model, messages=messages, tools=[tool], tool_choice="none", max_tokens=64)
print(last.choices[0].message.content)
