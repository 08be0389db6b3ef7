"""Many questions at once with no server: python examples/offline.py PICTURE [PICTURE ...]"""

import sys

from sensorium import LLM, SamplingParams


def main(paths: list[str]) -> None:
    questions = ["What is in the picture?", "How many shapes are there?"]
    conversations = [
        [
            {
                "role": "user",
                "content": [{"type": "image", "image": path}, {"type": "text", "text": question}],
            }
        ]
        for path in paths
        for question in questions
    ]
    with LLM() as llm:
        outputs = llm.chat(conversations, SamplingParams(temperature=0, max_tokens=64))
    for output, conversation in zip(outputs, conversations, strict=True):
        print(conversation[0]["content"][1]["text"], output.outputs[0].text)


if __name__ == "__main__":
    main(sys.argv[1:])
