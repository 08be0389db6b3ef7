"""Ask a running server (`sensorium serve`) about a video: python examples/video.py FILE [QUESTION]"""

import base64
import os
import sys
from pathlib import Path

from openai import OpenAI

path = Path(sys.argv[1])
question = sys.argv[2] if len(sys.argv) > 2 else "What happens in the video?"
url = f"data:video/{path.suffix[1:]};base64,{base64.b64encode(path.read_bytes()).decode()}"

client = OpenAI(base_url=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1"), api_key="none")
stream = client.chat.completions.create(
    model=client.models.list().data[0].id,
    messages=[
        {
            "role": "user",
            "content": [{"type": "video_url", "video_url": {"url": url}}, {"type": "text", "text": question}],
        }
    ],
    temperature=0,
    max_tokens=128,
    stream=True,
)
for chunk in stream:
    print(chunk.choices[0].delta.content or "" if chunk.choices else "", end="", flush=True)
print()
