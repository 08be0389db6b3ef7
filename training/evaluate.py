"""The accuracy table of the model card, measured through a running server's HTTP API.

    sensorium serve --port 8000 &
    python -m training.evaluate --url http://127.0.0.1:8000/v1 --count 200 --out sensorium/packaged/sensorium-tiny

Writes accuracy.json and prints the table as markdown. Needs espeak-ng, the held-out fonts and the openai package.
"""

from __future__ import annotations

import argparse
import base64
import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from threading import Lock

from openai import OpenAI

from training.espeak import Espeak
from training.evaluate_items import Item, tasks

BARS = {
    "colour + shape": 0.98, "count to 6": 0.95, "relation": 0.95, "reading, one slice": 0.95,
    "reading, several slices": 0.95, "box (IoU 0.7)": 0.90, "male or female": 0.95, "video direction": 0.95,
    "comparison": 0.90,
}  # fmt: skip
ERROR_BARS = {"speech, English": 0.05}


def content(item: Item) -> list[dict]:
    parts = []
    for mime, data in item.parts:
        text = base64.b64encode(data).decode()
        kind = mime.split("/")[0]
        if kind == "audio":
            parts.append({"type": "input_audio", "input_audio": {"data": text, "format": "wav"}})
        else:
            parts.append({"type": f"{kind}_url", f"{kind}_url": {"url": f"data:{mime};base64,{text}"}})
    return [*parts, {"type": "text", "text": item.question}]


def answer(client: OpenAI, model: str, item: Item) -> str:
    messages = [{"role": "user", "content": content(item)}]
    reply = client.chat.completions.create(model=model, messages=messages, temperature=0, max_tokens=96)
    return (reply.choices[0].message.content or "").strip()


def plain(text: str) -> str:
    return re.sub(r"[.,。，、?!？！]", "", text).strip().lower()


def iou(a: str, b: str) -> float:
    boxes = [[int(n) for n in re.findall(r"\d+", text.split("<box>")[-1])][:4] for text in (a, b)]
    if any(len(box) != 4 for box in boxes):
        return 0.0
    (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = boxes
    inside = max(0, min(ax2, bx2) - max(ax1, bx1)) * max(0, min(ay2, by2) - max(ay1, by1))
    return inside / max(1, (ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - inside)


def edits(a: list[str], b: list[str]) -> int:
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (x != y))
    return row[-1]


def units(task: str, text: str) -> list[str]:
    """What errors are counted in: words of English, characters of Chinese."""
    return list(plain(text)) if task == "speech, Chinese" else plain(text).split()


def is_right(item: Item, said: str) -> bool:
    if item.task.startswith("box"):
        return iou(item.answer, said) >= 0.7
    if item.task.startswith("reading"):
        return said == item.answer
    return plain(said) == plain(item.answer)


def measure(client: OpenAI, model: str, count: int, seed: int, wrong: list[dict]) -> dict[str, dict]:
    table: dict[str, dict] = {}
    lock = Lock()

    def run(item: Item) -> None:
        said = answer(client, model, item)
        right = is_right(item, said)
        with lock:
            cell = table.setdefault(item.task, {}).setdefault(
                item.language, {"asked": 0, "right": 0, "edits": 0, "units": 0}
            )
            cell["asked"] += 1
            cell["right"] += right
            if item.task.startswith("speech"):
                truth = units(item.task, item.answer)
                cell["edits"] += edits(truth, units(item.task, said))
                cell["units"] += len(truth)
            if not right:
                wrong.append({"task": item.task, "question": item.question, "answer": item.answer, "said": said})

    random = Random(seed)
    makers = tasks(Espeak())
    with ThreadPoolExecutor(4) as pool:
        for name, make in makers.items():
            share = 2 if name == "reading" else 1
            items = [make(random, language) for language in ("en", "zh") for _ in range(count * share // 2)]
            list(pool.map(run, items))
    return table


def markdown(table: dict[str, dict]) -> str:
    lines = ["| task | bar | English questions | Chinese questions | asked |", "|---|---|---|---|---|"]
    for task, cells in table.items():
        values = [f"{100 * c['right'] / c['asked']:.1f} %" if (c := cells.get(lang)) else "-" for lang in ("en", "zh")]
        bar = f"{100 * BARS[task]:.0f} %" if task in BARS else "-"
        lines.append(f"| {task} | {bar} | {values[0]} | {values[1]} | {sum(c['asked'] for c in cells.values())} |")
        if any(c["units"] for c in cells.values()):
            rates = [
                f"{100 * c['edits'] / c['units']:.1f} %" if (c := cells.get(lang)) else "-" for lang in ("en", "zh")
            ]
            unit = "character" if task == "speech, Chinese" else "word"
            bar = f"≤ {100 * ERROR_BARS[task]:.0f} %" if task in ERROR_BARS else "-"
            lines.append(f"| {task}: {unit} errors | {bar} | {rates[0]} | {rates[1]} | |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--model", default="sensorium-tiny")
    parser.add_argument("--count", type=int, default=200, help="questions per task")
    parser.add_argument("--seed", type=int, default=990_001)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--wrong", type=Path, help="write wrong answers here")
    args = parser.parse_args()
    wrong: list[dict] = []
    table = measure(OpenAI(base_url=args.url, api_key="none"), args.model, args.count, args.seed, wrong)
    print(markdown(table))
    if args.out:
        text = json.dumps({"seed": args.seed, "tasks": table}, ensure_ascii=False, indent=1)
        (args.out / "accuracy.json").write_text(text + "\n", encoding="utf-8")
    if args.wrong:
        args.wrong.write_text(json.dumps(wrong, ensure_ascii=False, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
