"""An answer about a picture as JSON of a given form: python examples/structured.py PICTURE

Needs `sensorium serve`. A grammar keeps every token to the schema, whatever the model.
"""

import base64
import json
import os
import sys
from pathlib import Path

from openai import OpenAI

path = Path(sys.argv[1])
url = f"data:image/{path.suffix[1:]};base64,{base64.b64encode(path.read_bytes()).decode()}"
question = [
    {"type": "image_url", "image_url": {"url": url}},
    {"type": "text", "text": "How many objects are there, and what colour is the circle?"},
]
schema = {
    "type": "object",
    "properties": {
        "objects": {"type": "integer", "minimum": 0, "maximum": 20},
        "circle": {"enum": ["red", "green", "blue", "yellow", "purple", "orange"]},
    },
    "required": ["objects", "circle"],
    "additionalProperties": False,
}

client = OpenAI(base_url=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1"), api_key="none")
answer = client.chat.completions.create(
    model=client.models.list().data[0].id,
    messages=[{"role": "user", "content": question}],
    response_format={"type": "json_schema", "json_schema": {"name": "scene", "schema": schema}},
    temperature=0,
)
print(json.loads(answer.choices[0].message.content))
