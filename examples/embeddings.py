"""Sort texts by how close they are to a query: python examples/embeddings.py QUERY TEXT [TEXT ...]

Needs `sensorium serve --runner pooling`. Vectors have length one, so a product of two is their cosine.
"""

import os
import sys

import numpy as np
from openai import OpenAI

query, *texts = sys.argv[1:]
client = OpenAI(base_url=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1"), api_key="none")
answer = client.embeddings.create(model=client.models.list().data[0].id, input=[query, *texts])
first, *others = np.array([item.embedding for item in answer.data])
for closeness, text in sorted(zip(others @ first, texts, strict=True), reverse=True):
    print(f"{closeness:.3f} {text}")
