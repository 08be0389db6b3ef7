"""How many full-duplex sessions one device holds: units against the clock, with random weights.

    python3 benchmarks/sessions.py [--size full] [--sessions 1,8,32,64,100,150,200] [--text-tokens 4] [--seconds 8]
                                   [--warm 16,64,100] [--timesteps 10] [--codec-dtype float16]
                                   [--json FILE] [--plot FILE]
    python3 benchmarks/sessions.py --draw FILE --plot FILE

Each session brings a second of 16 kHz sound and a 448 x 448 JPEG every second and says --text-tokens tokens and a
second of speech in every unit (sensorium.bench.scripted decides; all that a session computes is computed). Open loop:
units come by the clock, phases spread evenly, whether earlier ones are done or not. The time of a unit is from the end
of its second to the last of its sound, media preparation included; it is late above 1 s. The engine is a process of its
own, as behind a server; this process is all the callers. Prints JSON lines, then a table; with OUT set, the results are
written there too. --size tiny is for a CPU.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np
from gpu_check import FULL as BACKBONE
from PIL import Image
from speech_stage import RELEASED

from sensorium.bench import codec, synthetic
from sensorium.config import EngineConfig
from sensorium.engine.checkpoint import resolve_folder
from sensorium.engine.client import EngineClient
from sensorium.engine.protocol import EngineStats
from sensorium.engine.session_client import Session
from sensorium.errors import SensoriumError
from sensorium.media.image import from_array
from sensorium.models.minicpm_units import MadeUnit, SessionPrompts
from sensorium.types import (
    SOUND_RATE,
    Codes,
    Failed,
    Prompt,
    SamplingParams,
    SessionOpened,
    Sound,
    SpeechOptions,
    SpeechSampling,
    UnitDone,
    UnitFailed,
)

RATE, SIDE = 16_000, 448
PICTURES = 12
"""JPEGs that frames are made of; each frame differs from all others in some pixels, so none is found in a cache."""
WARM_UP = 2
"""Units of every session before those that count."""
DRAIN_S = 20.0

FULL: dict[str, Any] = BACKBONE | {"tts_config": RELEASED}
TINY: dict[str, Any] = FULL | {
    "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32,
    "intermediate_size": 96, "vocab_size": 1536, "torch_dtype": "float32",
    "vision_config": {"hidden_size": 32, "image_size": 980, "intermediate_size": 48, "num_attention_heads": 2,
                      "num_hidden_layers": 2, "patch_size": 14},
    "audio_config": {"d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 128,
                     "num_mel_bins": 80, "max_source_positions": 1500},
    "tts_config": FULL["tts_config"] | {
        "llm_dim": 128, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 2, "max_position_embeddings": 1024, "num_audio_tokens": 6562, "num_text_tokens": 1600,
        "audio_bos_token_id": 1500, "text_eos_token_id": 1501,
    },
}  # fmt: skip
SIZES = {"full": (FULL, codec.FULL), "tiny": (TINY, codec.SMALL)}


def main() -> None:
    args = arguments()
    if args.draw:
        plot(json.loads(args.draw.read_text("utf-8")), args.plot)
        return
    with tempfile.TemporaryDirectory(prefix="sensorium-sessions-") as name:
        write_checkpoint(Path(name), args)
        result = measure(config_for(Path(name), args), args)
    print(table(result["runs"]))
    out = args.json or (Path(os.environ["OUT"]) / "sessions.json" if "OUT" in os.environ else None)
    if out is not None:
        out.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    if args.plot:
        plot(result, args.plot)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--sessions", default="1,8,32,64,100,150,200")
    parser.add_argument("--text-tokens", default="4", help="of a unit; several numbers measure one after another")
    parser.add_argument("--seconds", type=int, default=8, help="that count, of every number of sessions")
    parser.add_argument("--warm", default="", help="numbers of sessions that run before and do not count")
    parser.add_argument("--context", type=int, default=400, help="tokens of each session's opening prompt")
    parser.add_argument("--window", default="1200,900", help="rows at which units leave, and down to which")
    parser.add_argument("--speech-len", type=int, default=1024, help="rows of the speech LM's cache of each session")
    parser.add_argument("--timesteps", type=int, default=10, help="of the codec's flow; the official demo takes 5")
    parser.add_argument("--codec-dtype", choices=("float32", "float16", "bfloat16"), default="float16")
    parser.add_argument("--voice-s", type=float, default=5.0, help="length of the recording whose voice they speak in")
    parser.add_argument("--engine", choices=("process", "thread"), default="process")
    parser.add_argument("--threads", type=int, default=max((os.cpu_count() or 2) - 4, 2), help="that prepare media")
    parser.add_argument("--utilization", type=float, default=0.95)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--draw", type=Path, help="an earlier --json, to plot and nothing else")
    args = parser.parse_args()
    args.sessions = [int(count) for count in args.sessions.split(",")]
    args.warm = [int(count) for count in args.warm.split(",") if count]
    args.text_tokens = [int(count) for count in args.text_tokens.split(",")]
    args.window = tuple(int(rows) for rows in args.window.split(","))
    return args


def write_checkpoint(folder: Path, args: argparse.Namespace) -> None:
    """All of a checkpoint but the model's weights, which the engine draws; with a codec and a voice."""
    packaged, (config, sizes) = resolve_folder(""), SIZES[args.size]
    for name in ("tokenizer.json", "tokenizer_config.json", "added_tokens.json"):
        shutil.copyfile(packaged / name, folder / name)
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    settings = json.loads((packaged / "preprocessor_config.json").read_text("utf-8"))
    settings |= {"scale_resolution": SIDE, "max_slice_nums": 9}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings), "utf-8")
    assets = folder / "assets" / "token2wav"
    codec.write_folder(assets, "causal", sizes)
    (assets / "voices").mkdir()
    codec.random_voice(sizes, args.voice_s).save(assets / "voices" / "default.safetensors")


def session_len(args: argparse.Namespace) -> int:
    """Rows that a session holds: the window's height and a unit."""
    return -(-(args.window[0] + 128 + max(args.text_tokens)) // 16) * 16


def config_for(folder: Path, args: argparse.Namespace) -> EngineConfig:
    most, rows = max(args.sessions + args.warm), session_len(args)
    return EngineConfig(
        model=str(folder), load_format="dummy", init_tts=True, speech_slots=most, speech_len=args.speech_len,
        max_sessions=most, max_num_seqs=8, max_model_len=rows, max_num_batched_tokens=4096,
        num_gpu_blocks_override=(most + 4) * (rows // 16 + 1), gpu_memory_utilization=args.utilization,
        mm_processor_cache_gb=0.0, session_policies={"scripted": "sensorium.bench.scripted:ScriptedDuplex"},
        codec_config={"n_timesteps": args.timesteps, "dtype": args.codec_dtype if args.size == "full" else "float32",
                      "trimming": "voice", "graphs": args.size == "full", "voices": 1, "voice_s": args.voice_s},
    )  # fmt: skip


# ---- one caller ----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Unit:
    """When what happened to a unit, monotonic seconds, and what came of it."""

    due_s: float
    prepared_s: float = 0.0
    text_s: float = 0.0
    sounds_s: float = 0.0
    spoken_s: float = 0.0
    queue_s: float = 0.0
    prefill_s: float = 0.0
    ids: tuple[int, ...] = ()
    codes: list[int] = field(default_factory=list)
    pcm: bytes = b""
    num_samples: int = 0
    hidden: np.ndarray | None = None
    problem: str = ""

    @property
    def compute_s(self) -> float:
        return self.spoken_s - self.due_s


class Caller:
    """One session, fed by the clock. Of the first one all that comes back is kept."""

    def __init__(
        self, client: EngineClient, pool: ThreadPoolExecutor, number: int, text_tokens: int, args: Any
    ) -> None:
        self.number, self.units = number, list[Unit]()
        # The first session's frames are the same in all runs, to compare what it says; no other's come twice.
        self._mark = text_tokens if not number else time.monotonic_ns()
        self._pool, self._text_tokens = pool, text_tokens
        self._prompts = SessionPrompts(client.processor, f"caller-{text_tokens}-{number}-{time.monotonic_ns()}")
        ids = np.random.default_rng(number).integers(300, 1000, args.context).tolist()
        high, low = args.window
        options = {"sliding_window_mode": "basic", "basic_window_high_tokens": high, "basic_window_low_tokens": low}
        self.session: Session = client.open_session(
            Prompt(tuple(ids)), "scripted", options, sampling=SamplingParams(seed=number), max_len=session_len(args),
            max_units=6, return_hidden=not number, session_id=self._prompts.stream,
            speech=SpeechOptions("default", "duplex", SpeechSampling(seed=number), codes=not number),
        )  # fmt: skip
        self._sent: dict[int, Unit] = {}
        self._reading = asyncio.ensure_future(self._read())
        self.opened, self.done = asyncio.Event(), asyncio.Event()
        self._left = 0

    async def feed(self, start_s: float, count: int) -> None:
        loop, self._left = asyncio.get_running_loop(), count
        for index in range(count):
            unit = Unit(start_s + index)
            self.units.append(unit)
            await asyncio.sleep(max(unit.due_s - time.monotonic(), 0.0))
            made = await loop.run_in_executor(self._pool, self._make, index)
            unit.prepared_s = time.monotonic()
            options = {"max_new_speak_tokens_per_chunk": self._text_tokens + 2}
            try:
                number = self.session.append(
                    made.prompt, deadline_s=unit.due_s + 1.0, deciding=made.deciding, options=options
                )
                self._sent[number] = unit
            except SensoriumError as error:
                self._end(unit, error.code)

    async def close(self) -> None:
        """End the session, and read what comes until then."""
        self.session.abort()
        await asyncio.wait_for(self._reading, 10.0)

    def _end(self, unit: Unit, problem: str = "") -> None:
        unit.spoken_s, unit.problem = 0.0 if problem else time.monotonic(), problem
        self._left -= 1
        if not self._left:
            self.done.set()

    def _make(self, index: int) -> MadeUnit:
        """A unit as a server prepares it: the JPEG decoded, patches, and features of the sound."""
        with Image.open(io.BytesIO(_pictures()[(self.number * 5 + index) % PICTURES])) as picture:
            pixels = np.array(picture.convert("RGB"))
        pixels[:2, :4] = np.frombuffer(np.int64([self.number, index, self._mark]).tobytes(), np.uint8).reshape(2, 4, 3)
        sound = np.random.default_rng([self.number, index]).standard_normal(RATE, dtype=np.float32) * 0.1
        return self._prompts.unit(sound, [from_array(pixels)])

    async def _read(self) -> None:
        async for event in self.session:
            if isinstance(event, SessionOpened):
                self.opened.set()
            elif isinstance(event, UnitDone):
                unit = self._sent[event.index]
                unit.text_s, unit.ids, unit.hidden = time.monotonic(), event.ids, event.hidden
                unit.queue_s = event.timings.queue_s
                unit.prefill_s = (event.timings.decided_s or 0.0) - unit.queue_s
                if not event.speaks:
                    self._end(unit, "silent")
            elif isinstance(event, Sound):
                self._hear(self._sent[event.index], event)
            elif isinstance(event, Codes):
                self._sent[event.call].codes += event.codes
            elif isinstance(event, UnitFailed):
                self._end(self._sent[event.index], event.code)
            elif isinstance(event, Failed):
                raise RuntimeError(f"session {self.number}: {event.message}")

    def _hear(self, unit: Unit, sound: Sound) -> None:
        unit.sounds_s = unit.sounds_s or time.monotonic()
        unit.num_samples += len(sound.pcm) // 2
        if not self.number:
            unit.pcm += sound.pcm
        if sound.ended is not None and not unit.problem:
            self._end(unit, "" if sound.ended in ("eos", "length") else sound.ended)


@cache
def _pictures() -> list[bytes]:
    rng = np.random.default_rng(0)
    return [synthetic.picture(rng, SIDE, SIDE) for _ in range(PICTURES)]


# ---- runs ----------------------------------------------------------------------------------------------------------


def measure(config: EngineConfig, args: argparse.Namespace) -> dict[str, Any]:
    _pictures()
    started = time.perf_counter()
    with EngineClient(config, kind=args.engine) as client:
        facts = {"size": args.size, "device": device_name(client), "dtype": client.facts.dtype, "engine": args.engine}
        facts |= {"load_s": time.perf_counter() - started, "memory": memory(client, args)}
        print(json.dumps({"line": "engine"} | facts), flush=True)
        for count in args.warm:
            run, _ = asyncio.run(run_sessions(client, count, args.text_tokens[0], args))
            print(json.dumps({"line": "warm", "sessions": count, "unit_ms": run["unit_ms"]}), flush=True)
        runs: list[dict[str, Any]] = []
        for text_tokens in args.text_tokens:
            alone: list[Unit] | None = None
            for count in args.sessions:
                run, units = asyncio.run(run_sessions(client, count, text_tokens, args))
                alone = alone or units
                run["check"] = compare(alone, units)
                run["memory_used_mib"] = memory_used()
                print(json.dumps({"line": "run"} | run), flush=True)
                runs.append(run)
    return facts | {"runs": runs}


async def run_sessions(
    client: EngineClient, count: int, text_tokens: int, args: argparse.Namespace
) -> tuple[dict[str, Any], list[Unit]]:
    """The figures of so many sessions, and the units of the first one."""
    with ThreadPoolExecutor(args.threads) as pool:
        callers = [Caller(client, pool, number, text_tokens, args) for number in range(count)]
        await asyncio.wait_for(asyncio.gather(*(caller.opened.wait() for caller in callers)), 60.0)
        start = time.monotonic() + 0.2
        total = WARM_UP + args.seconds
        feeds = [asyncio.ensure_future(caller.feed(start + n / count, total)) for n, caller in enumerate(callers)]
        await asyncio.sleep(start + WARM_UP - time.monotonic())
        before, began = client.stats(), time.monotonic()
        await asyncio.sleep(start + total - time.monotonic())
        after, ended = client.stats(), time.monotonic()
        await asyncio.gather(*feeds)
        await asyncio.wait([asyncio.ensure_future(caller.done.wait()) for caller in callers], timeout=DRAIN_S)
        await asyncio.gather(*(caller.close() for caller in callers))
    counted = [unit for caller in callers for unit in caller.units[WARM_UP:]]
    wanted = count * args.seconds
    return figures(counted, wanted, text_tokens, count) | busy(before, after, ended - began), callers[0].units


def figures(units: Sequence[Unit], wanted: int, text_tokens: int, count: int) -> dict[str, Any]:
    done = [unit for unit in units if unit.spoken_s]
    late = wanted - sum(unit.compute_s <= 1.0 for unit in done)
    stages = {
        "media": [unit.prepared_s - unit.due_s for unit in done],
        "queue": [unit.queue_s for unit in done],
        "encode and prefill": [unit.prefill_s for unit in done],
        "decode": [unit.text_s - unit.prepared_s - unit.queue_s - unit.prefill_s for unit in done],
        "speech": [unit.spoken_s - unit.text_s for unit in done],
    }
    return {
        "sessions": count,
        "text_tokens": text_tokens,
        "units": wanted,
        "done": len(done),
        "problems": Counter(unit.problem for unit in units if unit.problem),
        "late_share": late / wanted,
        "unit_ms": percentiles([unit.compute_s for unit in done]),
        "text_ms": percentiles([unit.text_s - unit.due_s for unit in done]),
        "first_sound_ms": percentiles([unit.sounds_s - unit.due_s for unit in done]),
        "stage_ms": {name: percentiles(values) for name, values in stages.items()},
        "as_scripted": sum(len(unit.ids) == text_tokens for unit in done) / max(len(done), 1),
        "sound_s_per_unit": round(sum(unit.num_samples for unit in done) / SOUND_RATE / max(len(done), 1), 4),
    }


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    if not seconds:
        return {}
    found = np.percentile(seconds, (50, 90, 99, 100)) * 1e3
    return dict(zip(("p50", "p90", "p99", "max"), (round(float(value), 2) for value in found), strict=True))


def busy(before: EngineStats, after: EngineStats, wall_s: float) -> dict[str, Any]:
    """What the engine did meanwhile: shares of a second on the device by stage, and of its thread by part of a step."""
    device: dict[str, float] = {}
    passes: dict[str, float] = {}
    for now, then in ((after.encoder_s, before.encoder_s), (after.device_s, before.device_s)):
        for name, seconds in now.items():
            old = then.get(name)
            device[name] = (seconds.sum - (old.sum if old else 0.0)) / wall_s
            passes[name] = (sum(seconds.counts) - (sum(old.counts) if old else 0)) / wall_s
    thread = {name: (value - before.step_s.get(name, 0.0)) / wall_s for name, value in after.step_s.items()}
    units = max(after.units_done - before.units_done, 1)
    pure = sum(thread.get(name, 0.0) for name in ("control", "schedule", "advance", "count")) * wall_s
    return {
        "device_share": rounded(device),
        "passes_per_s": rounded(passes),
        "thread_share": rounded(thread),
        "steps_per_s": round((after.steps - before.steps) / wall_s, 1),
        "host_ms_per_unit": round(pure / units * 1e3, 3),
    }


def rounded(values: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in values.items()}


def compare(alone: Sequence[Unit], units: Sequence[Unit]) -> dict[str, Any]:
    """The first session beside what it was in the first run: same text, hidden states and codes."""
    pairs = [(a, b) for a, b in zip(alone, units, strict=False) if a.spoken_s and b.spoken_s]
    errors = [
        float(np.abs(a.hidden - b.hidden).max() / np.abs(a.hidden).max())
        for a, b in pairs
        if a.hidden is not None and b.hidden is not None and a.hidden.shape == b.hidden.shape and a.hidden.size
    ]
    return {
        "units": len(pairs),
        "same_text": all(a.ids == b.ids for a, b in pairs),
        "hidden_error": round(max(errors, default=-1.0), 5),
        "same_codes": sum(a.codes == b.codes for a, b in pairs) / max(len(pairs), 1),
        "sound_error": sound_error(pairs),
    }


def sound_error(pairs: Sequence[tuple[Unit, Unit]]) -> float | None:
    """Largest difference of the sound, of full scale, up to the first unit with other codes; None where that is all."""
    errors: list[float] = []
    for a, b in pairs:
        if a.codes != b.codes or len(a.pcm) != len(b.pcm):
            break
        first, second = (np.frombuffer(unit.pcm, np.int16).astype(np.float64) for unit in (a, b))
        errors.append(float(np.abs(first - second).max(initial=0.0)) / 32768)
    return round(max(errors), 5) if errors else None


# ---- memory and machine --------------------------------------------------------------------------------------------


def memory(client: EngineClient, args: argparse.Namespace) -> dict[str, float]:
    """MiB that are kept for a session, and what is planned for the model and for all sessions."""
    plan, (config, sizes) = client.facts.plan, SIZES[args.size]
    tts, flow = config["tts_config"], sizes.flow
    wide = 2 if client.facts.dtype in ("bfloat16", "float16") else 4
    past = 100 * args.timesteps * flow.depth * 2 * 2 * flow.heads * flow.head_dim
    per = {
        "kv": plan.kv_cache / max(plan.kv_tokens, 1) * session_len(args),
        "speech": 2 * args.speech_len * tts["num_hidden_layers"] * tts["hidden_size"] * wide,
        "hearing": plan.streams / (client.config.max_sessions + 1),
        "codec": past * (2 if args.codec_dtype != "float32" and args.size == "full" else 4),
    }
    whole = {"weights": plan.weights, "activations": plan.activations, "all_kv": plan.kv_cache}
    return {name: round(value / 2**20, 1) for name, value in {**per, "session": sum(per.values()), **whole}.items()}


def memory_used() -> int | None:
    """MiB in use on the first GPU, by whomever."""
    if shutil.which("nvidia-smi") is None:
        return None
    asked = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "-i", "0"]
    return int(subprocess.run(asked, capture_output=True, text=True, check=True, timeout=10).stdout.split()[0])


def device_name(client: EngineClient) -> str:
    if not client.facts.device.startswith("cuda"):
        return f"CPU, {os.cpu_count()} cores"
    import torch

    return torch.cuda.get_device_name()


# ---- what people look at -------------------------------------------------------------------------------------------


def table(runs: Sequence[dict[str, Any]]) -> str:
    stages = list(runs[0]["stage_ms"])
    names = ["sessions", "text tokens", "p50 ms", "p99 ms", "late", *(f"{stage} ms" for stage in stages), "host ms"]
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    for run in runs:
        medians, unit = [run["stage_ms"][name].get("p50") for name in stages], run["unit_ms"]
        cells = [run["sessions"], run["text_tokens"], unit.get("p50"), unit.get("p99"), f"{run['late_share']:.2%}"]
        lines.append("| " + " | ".join(map(str, [*cells, *medians, run["host_ms_per_unit"]])) + " |")
    return "\n".join(lines)


def plot(result: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    in_order = sorted(result["runs"], key=lambda run: run["sessions"])
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(12, 4.5))
    for tokens in sorted({run["text_tokens"] for run in in_order}):
        runs = [run for run in in_order if run["text_tokens"] == tokens and run["unit_ms"]]
        counts = [run["sessions"] for run in runs]
        for name, style in (("p50", "-o"), ("p99", "--o")):
            left.plot(counts, [run["unit_ms"][name] for run in runs], style, label=f"{name}, {tokens} text tokens")
    left.axhline(1000, color="grey", linewidth=1)
    left.set(xlabel="sessions", ylabel="ms from the end of a second to the last of its sound", yscale="log")
    left.legend()
    first = min(run["text_tokens"] for run in in_order)
    runs = [run for run in in_order if run["text_tokens"] == first and run["unit_ms"]]
    names, bottom = list(runs[0]["stage_ms"]), np.zeros(len(runs))
    for name in names:
        heights = np.array([run["stage_ms"][name]["p50"] for run in runs])
        right.bar([str(run["sessions"]) for run in runs], heights, bottom=bottom, label=name)
        bottom += heights
    right.set(xlabel="sessions", ylabel=f"ms of a unit by stage, medians ({first} text tokens)")
    right.legend()
    figure.suptitle(f"{result['size']} MiniCPM-o 4.5, random weights, {result['device']}, {result['dtype']}")
    figure.savefig(path, dpi=90, bbox_inches="tight")


if __name__ == "__main__":
    main()
