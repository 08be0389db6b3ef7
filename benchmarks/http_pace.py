"""Whether streams keep their pace: gaps between the tokens of many concurrent HTTP streams, and what it costs.

    python benchmarks/http_pace.py URL [--streams 256] [--requests 512] [--input-len 128] [--output-len 256]
        [--clients 4] [--arrivals all|spread] [--seed 0]

URL is that of a running server, such as http://127.0.0.1:8000. `--clients` processes keep `--streams` completions
under way until `--requests` are answered. Each sends a random prompt of the first 200 token ids, which every tokenizer
has, and asks for the ids of its answer, so that every token is seen, also one that is no text. spread: the first
streams begin one by one over two seconds. A gap is the time between two pieces of one stream at the client's socket;
`together` is the share of pieces that hold more than one token.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import numpy as np

SPREAD_S = 2.0
HEAD = "POST /v1/completions HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n"


@dataclass(slots=True)
class Share:
    """What one client process does."""

    url: str
    model: str
    number: int
    streams: int
    requests: int
    input_len: int
    output_len: int
    seed: int
    spread_s: float
    """Over so long the first streams begin."""
    begin_s: float
    """Of the monotonic clock, which all processes share."""


@dataclass(slots=True)
class Seen:
    """Seconds at the client."""

    gaps: list[float] = field(default_factory=list[float])
    first: list[float] = field(default_factory=list[float])
    tokens: int = 0
    together: int = 0
    end_s: float = 0.0


def client(share: Share) -> Seen:
    return asyncio.run(_client(share))


async def _client(share: Share) -> Seen:
    seen, left = Seen(), iter(range(share.requests))
    await asyncio.sleep(max(share.begin_s - time.monotonic(), 0))

    async def one_after_another(place: int) -> None:
        await asyncio.sleep(share.spread_s * place / share.streams)
        for number in left:
            await _stream(share, number, seen)

    await asyncio.gather(*(one_after_another(place) for place in range(share.streams)))
    seen.end_s = time.monotonic()
    return seen


async def _stream(share: Share, number: int, seen: Seen) -> None:
    rng = np.random.default_rng((share.seed, share.number, number))
    asked = {
        "model": share.model, "prompt": rng.integers(0, 200, share.input_len).tolist(), "stream": True,
        "max_tokens": share.output_len, "temperature": 0, "ignore_eos": True, "return_token_ids": True,
    }  # fmt: skip
    body, target = json.dumps(asked).encode(), urlsplit(share.url)
    reader, writer = await asyncio.open_connection(target.hostname, target.port, limit=1 << 20)
    start = time.monotonic()
    writer.write(HEAD.format(target.netloc, len(body)).encode() + body)
    status = await reader.readline()
    if b" 200 " not in status:
        raise RuntimeError(f"the server answered {status!r}")
    last, count = 0.0, 0
    async for line in reader:
        if not line.startswith(b"data: {"):
            if line.startswith(b"data: [DONE]"):
                break
            continue
        now = time.monotonic()
        found = json.loads(line[6:])
        if "choices" not in found:
            raise RuntimeError(f"a stream ended with {line[:300]!r}")
        tokens = len(found["choices"][0].get("token_ids") or ()) if found["choices"] else 0
        if not tokens:
            continue
        seen.together += tokens > 1
        if count:
            seen.gaps.append(now - last)
        else:
            seen.first.append(now - start)
        last, count = now, count + tokens
    seen.tokens += count
    writer.close()
    if count != share.output_len:
        raise RuntimeError(f"a stream brought {count} tokens in place of {share.output_len}")


def measure(url: str, model: str, args: argparse.Namespace) -> dict[str, float]:
    """One load; milliseconds and tokens a second."""
    begin_s = time.monotonic() + 1.5  # processes are there by then
    shares = [
        Share(
            url, model, number, args.streams // args.clients, args.requests // args.clients, args.input_len,
            args.output_len, args.seed, SPREAD_S if args.arrivals == "spread" else 0.0, begin_s,
        )
        for number in range(args.clients)
    ]  # fmt: skip
    with ProcessPoolExecutor(args.clients, multiprocessing.get_context("spawn")) as pool:
        seen = list(pool.map(client, shares))
    gaps = np.concatenate([one.gaps for one in seen]) * 1e3
    first = np.concatenate([one.first for one in seen]) * 1e3
    seconds = max(one.end_s for one in seen) - begin_s
    median, p99 = np.percentile(gaps, (50, 99))
    return {
        "tokens_per_s": sum(one.tokens for one in seen) / seconds,
        "gap_median_ms": median, "gap_p90_ms": float(np.percentile(gaps, 90)), "gap_p99_ms": p99,
        "gap_max_ms": gaps.max(), "p99_over_median": p99 / median,
        "first_median_ms": float(np.median(first)), "first_p99_ms": float(np.percentile(first, 99)),
        "together": sum(one.together for one in seen) / (len(gaps) + len(first)),
    }  # fmt: skip


def parse(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("url")
    for name, value in (("streams", 256), ("requests", 512), ("input-len", 128), ("output-len", 256), ("clients", 4)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--arrivals", choices=("all", "spread"), default="all")
    return parser.parse_args(words)


def main() -> None:
    from urllib.request import urlopen

    args = parse()
    with urlopen(f"{args.url}/v1/models") as reply:
        model = json.load(reply)["data"][0]["id"]
    found = measure(args.url, model, args)
    print(json.dumps({name: round(float(value), 4) for name, value in found.items()}))


if __name__ == "__main__":
    main()
