"""Ask about many pictures through an OpenAI batch file: python examples/batch.py PICTURE [PICTURE ...]

Writes batch.jsonl, and has `sensorium run-batch` answer it into answers.jsonl; no server is needed. A run that is
stopped goes on where it was when it is started again.
"""

import base64
import json
import subprocess
import sys
from pathlib import Path

with open("batch.jsonl", "w") as file:
    for number, path in enumerate(map(Path, sys.argv[1:])):
        url = f"data:image/{path.suffix[1:]};base64,{base64.b64encode(path.read_bytes()).decode()}"
        question = [
            {"type": "image_url", "image_url": {"url": url}},
            {"type": "text", "text": "What is in the picture?"},
        ]
        body = {"messages": [{"role": "user", "content": question}], "temperature": 0, "max_tokens": 64}
        line = {"custom_id": f"{number}-{path.name}", "method": "POST", "url": "/v1/chat/completions", "body": body}
        file.write(json.dumps(line) + "\n")

files = ["--input-file", "batch.jsonl", "--output-file", "answers.jsonl"]
subprocess.run([sys.executable, "-m", "sensorium", "run-batch", *files], check=True)
for line in Path("answers.jsonl").read_text().splitlines():
    answer = json.loads(line)
    print(answer["custom_id"], answer["response"]["body"]["choices"][0]["message"]["content"])
