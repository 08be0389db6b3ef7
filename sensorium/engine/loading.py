"""From an EngineConfig to a ready Engine: find the folder, pick device and dtype, load weights, size the caches."""

from __future__ import annotations

import gc
import importlib
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from sensorium.config import FIT, EngineConfig
from sensorium.engine.blocks import BlockPool
from sensorium.engine.checkpoint import PACKAGED_MODEL, Progress, open_checkpoint, open_processor
from sensorium.engine.codec import CodecStage
from sensorium.engine.defaults import default_sampling
from sensorium.engine.encoder_cache import EncoderCacheIndex
from sensorium.engine.engine import Engine
from sensorium.engine.grammar import GrammarCompiler
from sensorium.engine.largest import (
    check_sizes,
    encode_samples,
    largest_item,
    largest_media,
    live_frames,
    sample_media,
)
from sensorium.engine.pace import Pace
from sensorium.engine.pooler_config import PoolerConfig, read_pooler
from sensorium.engine.pooling import Pooler
from sensorium.engine.protocol import EngineFacts, MemoryPlan
from sensorium.engine.readout import Readout
from sensorium.engine.runner import Runner
from sensorium.engine.scheduler import Scheduler
from sensorium.engine.speech import SpeechStage
from sensorium.errors import CheckpointError
from sensorium.kernels import select
from sensorium.kernels.ahead import compiling
from sensorium.kernels.select import paged_attention
from sensorium.layers.linear import Linear
from sensorium.models.base import Model, Processor, SpeechModel
from sensorium.models.build import load_codec, load_model, voice_files, voice_seconds
from sensorium.types import MediaItem, Modality, ModelInputs, Prompt, Request, SamplingParams

log = logging.getLogger(__name__)

_CPU_KV_BYTES = 256 << 20
_MAX_PACKED_BYTES = 1 << 30
# The compiled decoder's own copy of the weights may take this share of the machine's memory, where it is more.
_PACKED_SHARE = 1 / 8
_ENCODER_CACHE_ROWS = 65_536
_FEWEST_PROMPT_TOKENS = 64
# As many as by default: with more, many may come at once, and nobody is to wait while shapes are recorded.
_FEW_SESSIONS = 16


@dataclass(frozen=True, slots=True)
class Loaded:
    engine: Engine
    model: Model
    processor: Processor
    name: str
    device: torch.device
    dtype: torch.dtype
    plan: MemoryPlan
    seconds: dict[str, float]
    default_sampling: SamplingParams
    pooler: PoolerConfig | None = None
    recordings: Mapping[str, str] = field(default_factory=dict[str, str])

    def facts(self) -> EngineFacts:
        return EngineFacts(
            model_name=self.name,
            max_model_len=self.engine.max_model_len,
            vocab_size=self.model.vocab_size,
            hidden_size=self.model.hidden_size,
            modalities=self.model.modalities,
            row_bytes=self.engine.scheduler.row_bytes,
            encoder_cache_bytes=self.plan.encoder_cache,
            device=str(self.device),
            dtype=str(self.dtype).removeprefix("torch."),
            plan=self.plan,
            default_sampling=self.default_sampling,
            speech_slots=self.engine.speech.num_free if self.engine.speech is not None else 0,
            can_sound=self.engine.codec is not None,
            can_clone=self.engine.codec is not None and self.engine.codec.codec.can_clone,
            voices=self.engine.voices.names,
            recordings=self.recordings,
            pooler=self.pooler,
            seconds=self.seconds,
            kernels={"paged attention": paged_attention(self.device, self.dtype).name},
        )


def pick_device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise CheckpointError(f"unknown device {name!r}; use auto, cpu, cuda or cuda:N", param="device") from error
    if device.type not in ("cpu", "cuda"):
        raise CheckpointError(f"device {name!r} is not supported; use auto, cpu, cuda or cuda:N", param="device")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise CheckpointError("device 'cuda' was asked for but torch sees none; run `sensorium doctor`", param="device")
    return device


def pick_dtype(name: str, device: torch.device, config: dict) -> torch.dtype:
    """auto: float32 on the CPU; on a GPU the checkpoint's own 16-bit type, bfloat16 for float32 checkpoints."""
    if name != "auto":
        return getattr(torch, {"half": "float16", "float": "float32"}.get(name, name))
    if device.type == "cpu":
        return torch.float32
    own = config.get("torch_dtype") or config.get("dtype")
    return torch.float16 if own == "float16" else torch.bfloat16


def load(config: EngineConfig, progress: Progress | None = None) -> Loaded:
    """Load everything and run one warm-up step. Raises CheckpointError with what to do."""
    seconds: dict[str, float] = {}
    report = progress or (lambda phase, share: None)
    folder, hf_config = open_checkpoint(config)
    sampling = default_sampling(folder, config)
    started = time.perf_counter()
    device = pick_device(config.device)
    dtype = pick_dtype(config.dtype, device, hf_config)
    if device.type == "cuda" and dtype == torch.float32:
        # float32 was asked for: convolutions would otherwise round their operands to tf32, 1e-4 in the sound tower.
        torch.backends.cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined] - not in the stubs
    processor = open_processor(folder, hf_config, config)
    processor.scales_on_device = device.type == "cuda"
    seconds["processor"] = time.perf_counter() - started

    started = time.perf_counter()
    model = load_model(folder, hf_config, config, device, dtype, lambda done, total, _: report("weights", done / total))
    longest = longest_context(config, model)
    check_budget(config, longest)
    codec, voices = open_codec(folder, config, model, device)
    largest = largest_media(processor, model.modalities, config, longest)
    tune(model, device, dtype, config.block_size)
    seconds["weights"] = time.perf_counter() - started

    started = time.perf_counter()
    samples = sample_media(processor, model.modalities, config, longest) if device.type == "cuda" else None
    plan = plan_memory(model, config, device, dtype, largest, samples, codec_bytes(codec, config, device))
    check_sizes(largest, config, longest, plan.encoder_cache // (model.hidden_size * dtype.itemsize))
    pooler = read_pooler(folder, hf_config, config)
    engine = build_engine(model, processor, config, device, dtype, plan, pooler, codec, voices)
    if not config.enforce_eager:
        frames = live_frames(processor) if config.max_sessions and "image" in model.modalities else []
        record_graphs(engine, config, frames, voices)
    warm_up(engine, report)
    seconds["warm-up"] = time.perf_counter() - started
    if config.max_sessions > _FEW_SESSIONS and not config.enforce_eager:
        started = time.perf_counter()
        engine.runner.rehearse_all()
        seconds["shapes of sessions"] = time.perf_counter() - started
    name = config.model or PACKAGED_MODEL
    files = {voice: path for voice, path in voice_files(folder, config).items() if voice in voices}
    recordings = {voice: str(path) for voice, path in files.items() if path.suffix == ".wav"}
    return Loaded(engine, model, processor, name, device, dtype, plan, seconds, sampling, pooler, recordings)


def record_graphs(engine: Engine, config: EngineConfig, frames: Sequence[MediaItem], voices: Mapping[str, Any]) -> None:
    """Record what every server will need. frames: pictures of sessions; what those need may wait until it is idle."""
    most, paced = config.max_num_seqs + config.max_sessions, engine.scheduler.pace is not None
    engine.runner.record_graphs(most, engine.max_model_len, mixed=paced, frames=frames)
    if engine.speech is not None:
        engine.speech.record_graphs()
    if engine.codec is not None and config.codec_config.get("graphs"):
        engine.codec.record_graphs(config.speech_slots, voices.values())


@torch.inference_mode()
def tune(model: Model, device: torch.device, dtype: torch.dtype, block_size: int) -> None:
    """Let matrices be multiplied as the device does it best; on a CPU from copies in faster layouts, where small."""
    linears = [module for module in model.modules() if isinstance(module, Linear)]  # pyright: ignore
    make = paged_attention(device, dtype).implementation.ops.head_product
    for linear in linears if make else ():
        if linear.weight.shape[0] == model.vocab_size and (found := make(linear.weight)):
            linear.weight = torch.nn.Parameter(found[0], requires_grad=False)
            linear.use(found[1])
    if device.type != "cpu":
        return
    size = sum(linear.weight.numel() * linear.weight.element_size() for linear in linears)
    if size <= _MAX_PACKED_BYTES:
        for linear in linears:
            linear.pack()
    if size <= max(_MAX_PACKED_BYTES, _PACKED_SHARE * _machine_bytes()):
        for part in (model, model.speech):
            if part is not None:
                fuse(part, device, dtype, block_size)


def fuse(model: Model | SpeechModel, device: torch.device, dtype: torch.dtype, block_size: int) -> None:
    """Run the decoder on compiled kernels, now or soon, where there are any for it."""
    choice = select.decoder(device, dtype, model.head_dim, block_size)
    if choice.implementation is not None:
        choice.implementation(model.fuse)


def _machine_bytes() -> int:
    """Memory of the machine; 0 where the system does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 0


def encoder_cache_bytes(config: EngineConfig, row_bytes: int, largest: int = 0) -> int:
    """largest: rows of the largest item, which the cache holds unless its size was asked for."""
    if config.encoder_cache_bytes is not None:
        return config.encoder_cache_bytes
    rows = config.encoder_cache_tokens
    return (max(_ENCODER_CACHE_ROWS, largest) if rows is None else rows) * row_bytes


def open_codec(
    folder: Path, config: EngineConfig, model: Model, device: torch.device
) -> tuple[CodecStage | None, Mapping[str, Any]]:
    """The codec with the memory that its streams need, and its voices; nothing where the model does not speak."""
    speech = model.speech
    found = load_codec(folder, config, device) if speech is not None else None
    if speech is None or found is None:
        return None, {}
    codec, voices = found
    if codec.num_codes < speech.eos_code:
        raise CheckpointError(
            f"the codec knows {codec.num_codes} codes, and the speech LM makes {speech.eos_code}; they belong to "
            "different checkpoints",
            param="codec",
        )
    stage = CodecStage(codec, device, int(config.codec_config.get("voices", 4)), voice_seconds(config))
    if device.type == "cuda":
        stage.reserve(config.speech_slots)
    return stage, voices


def codec_bytes(codec: CodecStage | None, config: EngineConfig, device: torch.device) -> int:
    """What the codec needs on a GPU while it computes, beside its state."""
    if codec is None or device.type != "cuda":
        return 0
    return _peak(device, lambda: codec.rehearse(config.speech_slots))


def speech_bytes(config: EngineConfig, model: Model, dtype: torch.dtype) -> int:
    """The KV caches of the speech slots; the speech LM's weights are the model's."""
    if model.speech is None:
        return 0
    return config.speech_slots * SpeechStage.slot_bytes(model.speech, dtype, config.block_size, config.speech_len)


def stream_bytes(config: EngineConfig, model: Model) -> int:
    """What encoders keep of live sound, for all sessions that there may be."""
    one = getattr(model, "stream_bytes", 0)
    return (config.max_sessions + 1) * one if config.max_sessions else 0


def plan_memory(
    model: Model,
    config: EngineConfig,
    device: torch.device,
    dtype: torch.dtype,
    largest: Mapping[Modality, Prompt] | None = None,
    samples: Mapping[Modality, Prompt] | None = None,
    codec: int = 0,
) -> MemoryPlan:
    """Split the device's memory. On a GPU the share `gpu_memory_utilization` counts all memory in use, ours or not.

    largest, samples: see largest_media and sample_media; without them no room is planned for encoders. codec: see
    codec_bytes.
    """
    longest = longest_context(config, model)
    media = {modality: largest_item(prompt).rows for modality, prompt in (largest or {}).items()}
    fitting = max((rows for rows in media.values() if rows <= longest), default=0)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())  # pyright: ignore
    token_bytes = 2 * model.num_layers * model.num_kv_heads * model.head_dim * dtype.itemsize
    encoder_cache = encoder_cache_bytes(config, model.hidden_size * dtype.itemsize, fitting)
    speech, streams = speech_bytes(config, model, dtype) + codec, stream_bytes(config, model)
    activations = encoders = 0
    if config.kv_cache_bytes is not None:
        kv = config.kv_cache_bytes
    elif device.type == "cpu":
        kv = _CPU_KV_BYTES
    else:
        with compiling(device), torch.inference_mode():
            encode_samples(model, samples or {}, config, longest)
            _full_step(model, config, device, dtype)
        encoders, activations = _rehearse(
            device,
            lambda: encode_samples(model, samples or {}, config, longest),
            lambda: _full_step(model, config, device, dtype),
        )
        # The rows of the largest item, in pieces and put together.
        later = 2 * fitting * model.hidden_size * dtype.itemsize + encoder_cache + speech + streams
        free, total = torch.cuda.mem_get_info(device)
        kv = int(total * config.gpu_memory_utilization) - (total - free) - later
    tokens = kv // token_bytes // config.block_size * config.block_size
    if tokens < 2 * config.block_size:
        raise CheckpointError(
            f"only {max(kv, 0) / 2**20:.0f} MiB are left for the KV cache, less than {2 * config.block_size} tokens of "
            f"{token_bytes} bytes; raise gpu_memory_utilization, lower max_num_batched_tokens, or use a larger device"
        )
    if config.num_gpu_blocks_override is not None:
        tokens = config.num_gpu_blocks_override * config.block_size
    else:
        # More blocks than the largest load can fill would only be memory nobody uses.
        most = (config.max_num_seqs + config.max_sessions) * longest
        tokens = min(tokens, -(-most // config.block_size) * config.block_size)
    kv = tokens * token_bytes
    return MemoryPlan(weights, activations, kv, encoder_cache, tokens, encoders, media, speech, streams)


@torch.inference_mode()
def _peak(device: torch.device, work: Callable[[], object]) -> int:
    """Most bytes on the GPU while `work` runs, beyond those before it."""
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    work()
    peak = torch.cuda.max_memory_allocated(device) - before
    gc.collect()
    torch.cuda.empty_cache()
    return peak


@torch.inference_mode()
def _rehearse(device: torch.device, *works: Callable[[], object]) -> list[int]:
    """Bytes that the allocator holds beyond those before, after each of the works.

    It keeps them: what it could not reuse between two works, and what it rounds up, is counted as it will be.
    """
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved(device)
    held: list[int] = []
    for work in works:
        work()
        held.append(torch.cuda.memory_reserved(device) - before)
    return held


def _full_step(model: Model, config: EngineConfig, device: torch.device, dtype: torch.dtype) -> None:
    """As many tokens as a step may have, on a small throw-away cache."""
    count = min(config.max_num_batched_tokens, longest_context(config, model))
    blocks = -(-count // config.block_size)
    shape = (2, blocks, config.block_size, model.num_kv_heads, model.head_dim)
    kv = [torch.zeros(shape, dtype=dtype, device=device)] * model.num_layers
    plan = paged_attention(device, dtype).implementation(
        [count], [count], [list(range(blocks))], config.block_size, device
    )
    x = model.embed(torch.zeros(count, dtype=torch.int64, device=device))
    hidden = model.forward(x, ModelInputs(torch.arange(count, device=device), plan, kv))
    model.logits(hidden[: config.max_num_seqs + config.max_sessions]).float().sort(dim=-1)


def longest_context(config: EngineConfig, model: Model) -> int:
    """The context asked for, before memory has a say."""
    asked = model.max_model_len if config.max_model_len in (None, FIT) else config.max_model_len
    return min(asked, model.max_model_len)


def served_context(config: EngineConfig, model: Model, plan: MemoryPlan) -> int:
    """The longest prompt plus answer. A length that was asked for must fit the KV cache; else it is what fits."""
    longest = longest_context(config, model)
    if longest <= plan.kv_tokens:
        return longest
    if config.max_model_len not in (None, FIT):
        raise CheckpointError(
            f"max_model_len {longest} needs {plan.kv_cache * longest / plan.kv_tokens / 2**30:.2f} GiB of KV cache, "
            f"but {plan.kv_cache / 2**30:.2f} GiB are there: the largest that fits is {plan.kv_tokens}. Lower it, use "
            "auto, or raise gpu_memory_utilization or kv_cache_memory_bytes",
            param="max_model_len",
        )
    if config.max_model_len is None:
        log.warning("the context is %d tokens, what the KV cache holds, not the model's %d", plan.kv_tokens, longest)
    return plan.kv_tokens


def check_budget(config: EngineConfig, longest: int) -> None:
    """Raises CheckpointError where a step could never hold what has to be computed at once."""
    if not config.enable_chunked_prefill and config.max_num_batched_tokens < longest:
        raise CheckpointError(
            f"without chunked prefill a step must hold a whole prompt: raise max_num_batched_tokens "
            f"({config.max_num_batched_tokens}) to max_model_len ({longest}), or leave chunked prefill on",
            param="max_num_batched_tokens",
        )


def build_engine(
    model: Model,
    processor: Processor,
    config: EngineConfig,
    device: torch.device,
    dtype: torch.dtype,
    plan: MemoryPlan,
    pooler: PoolerConfig | None = None,
    codec: CodecStage | None = None,
    voices: Mapping[str, Any] | None = None,
) -> Engine:
    num_blocks = plan.kv_tokens // config.block_size
    readout = Readout(model, Pooler(pooler) if pooler is not None else None, config.logprobs_mode)
    runner = Runner(model, num_blocks, config.block_size, device, dtype, readout)
    scheduler = Scheduler(
        BlockPool(num_blocks, config.block_size),
        EncoderCacheIndex(plan.encoder_cache),
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        max_encoder_rows=config.max_encoder_rows,
        row_bytes=model.hidden_size * dtype.itemsize,
        enable_prefix_caching=config.enable_prefix_caching,
        enable_chunked_prefill=config.enable_chunked_prefill,
        split_media=not config.disable_chunked_mm_input,
        long_prefill_tokens=config.long_prefill_token_threshold,
        pace=make_pace(config),
    )
    longest = served_context(config, model, plan)
    grammars = GrammarCompiler(processor.tokenizer, config.structured_outputs_config)
    speech = None
    if model.speech is not None:
        speech = SpeechStage(model.speech, config.speech_slots, max_len=config.speech_len, block_size=config.block_size)
    engine = Engine(
        runner, scheduler, processor.tokenizer, longest, grammars, speech=speech, codec=codec, voices=voices
    )
    engine.sessions.policies |= own_policies(config)
    if config.max_sessions and (reserve := getattr(model, "reserve_streams", None)) is not None:
        reserve(config.max_sessions)
    return engine


def make_pace(config: EngineConfig) -> Pace | None:
    """None without a bound, and where steps hold what cannot be split."""
    if not config.decode_slowdown or not config.enable_chunked_prefill or config.disable_chunked_mm_input:
        return None
    return Pace(config.decode_slowdown, _FEWEST_PROMPT_TOKENS, config.max_num_batched_tokens)


def own_policies(config: EngineConfig) -> dict[str, type]:
    """The classes that session_policies names. Raises CheckpointError for one that cannot be imported."""
    found: dict[str, type] = {}
    for name, path in config.session_policies.items():
        module, _, attribute = str(path).partition(":")
        try:
            found[name] = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError, ValueError) as error:
            raise CheckpointError(
                f"session_policies: {name!r} is {path!r}, which cannot be imported ({error}); write module:Class",
                param="session_policies",
            ) from error
    return found


def warm_up(engine: Engine, report: Progress) -> None:
    """One tiny request, so that lazy initialisation is paid before the first caller."""
    report("warm-up", 0.0)
    sampling = SamplingParams(temperature=0.0, max_tokens=2, ignore_eos=True)
    engine.inbox.append(Request("warm-up", Prompt((1, 2, 3)), sampling, namespace="warm-up"))
    threads = torch.get_num_threads()
    while engine.has_work:
        engine.step()
    torch.set_num_threads(threads)  # this thread is the caller's; the engine will have its own
    engine.reset_stats()
    report("warm-up", 1.0)
