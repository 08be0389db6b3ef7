"""Q: the library in other people's hands: addresses, arrays that change, interruptions, two engines."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hostile.host import Host, web_host
from PIL import Image

from sensorium import LLM, SamplingParams
from sensorium.config import ServerConfig
from sensorium.errors import CheckpointError, MediaError, MediaFetchError, SensoriumError
from sensorium.models.picture_settings import PictureSettings
from sensorium.server.run import bind

GREEDY = SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True)
SIZES = {"max_model_len": 1024, "max_num_seqs": 4, "kv_cache_bytes": 16 << 20}


@pytest.fixture(scope="module")
def llm(any_model: Path) -> Iterator[LLM]:
    with LLM(str(any_model), **SIZES) as made:
        yield made


@pytest.fixture(scope="module")
def trap() -> Iterator[Host]:
    with web_host() as host:
        yield host


def ask(llm: LLM, *parts: object) -> list[int]:
    (output,) = llm.chat([{"role": "user", "content": list(parts)}], GREEDY, use_tqdm=False)
    return list(output.outputs[0].token_ids)


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:{}/x.png", "http://localhost:{}/", "http://2130706433:{}/", "file:///etc/passwd"]
)
def test_h342_h037_the_servers_rules_hold_offline(llm: LLM, trap: Host, url: str):
    with pytest.raises(MediaFetchError):
        ask(llm, {"type": "image_url", "image_url": {"url": url.format(trap.port)}})
    assert trap.connections == 0


def test_h342_a_caller_may_say_that_it_trusts_a_host(any_model: Path, trap: Host):
    with LLM(str(any_model), **SIZES, allowed_media_domains=[f"127.0.0.1:{trap.port}"]) as trusting:
        before = trap.connections
        ask(trusting, {"type": "image_url", "image_url": {"url": f"http://127.0.0.1:{trap.port}/x.png"}})
        assert trap.connections == before + 1
        trap.connections = 0


def test_h343_a_picture_that_is_closed_before_its_turn_is_a_clear_error(llm: LLM):
    picture = Image.fromarray(np.zeros((60, 80, 3), dtype=np.uint8))
    prompt = [{"role": "user", "content": [{"type": "image_pil", "image_pil": picture}]}]
    llm.enqueue_chat([prompt], GREEDY)
    picture.close()
    with pytest.raises(MediaError):
        llm.wait_for_completion()
    assert ask(llm, "hi")


def test_h343_arrays_of_odd_layouts(llm: LLM):
    samples = (np.sin(np.arange(16_000) / 20) / 2).astype(np.float32)

    def hear(array: np.ndarray) -> list[int]:
        prompt = {"prompt": "(<audio>./</audio>)", "multi_modal_data": {"audio": (array, 16_000)}}
        return list(llm.generate(prompt, GREEDY, use_tqdm=False)[0].outputs[0].token_ids)

    frozen = samples.copy()
    frozen.setflags(write=False)
    assert hear(frozen) == hear(samples) == hear(samples[::-1].copy()[::-1]) == hear(np.repeat(samples, 2)[::2])
    with pytest.raises(ValueError):
        hear(np.array(["a", None], dtype=object))


def test_h345_a_batch_with_a_bad_item_says_which_and_the_next_one_works(llm: LLM):
    with pytest.raises(ValueError, match="1"):
        llm.generate(["fine", "word " * 5000, "fine"], GREEDY, use_tqdm=False)
    assert len(llm.generate(["fine"] * 3, GREEDY, use_tqdm=False)) == 3


def test_h346_closed_twice_and_used_after(any_model: Path):
    made = LLM(str(any_model), **SIZES)
    made.close()
    made.close()
    with pytest.raises(SensoriumError, match="closed"):
        made.generate("hi", GREEDY, use_tqdm=False)


def test_h347_two_engines_in_one_process(any_model: Path, llm: LLM):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with LLM(str(any_model), **SIZES) as other:
        assert ask(other, "hi") == ask(llm, "hi")
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


@pytest.mark.parametrize("std", [[0.0, 1.0, 1.0], [float("nan")] * 3, [-1.0] * 3])
def test_h117_a_processor_that_divides_by_zero_is_refused_at_start(std: list[float]):
    with pytest.raises(CheckpointError, match="image_std"):
        PictureSettings.from_hf({"image_std": std})


@pytest.mark.parametrize("key", ["EMPTY", "default", "sk-1234", "changeme"])
def test_h298_a_key_that_everybody_knows_is_none(key: str):
    with pytest.raises(SensoriumError, match="everybody knows"):
        bind(ServerConfig(host="0.0.0.0", port=0, api_keys=("fine", key)))
    bind(ServerConfig(port=0, api_keys=(key,))).close()


SCRIPT = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background inherit that it is ignored
from sensorium.config import ServerConfig
from sensorium.models.picture_settings import PictureSettings
from sensorium.server.run import bind
from sensorium import LLM, SamplingParams
made = LLM(sys.argv[1], max_model_len=1024, kv_cache_bytes=16 << 20)
print("ready", flush=True)
if sys.argv[2] == "fork":
    import os
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    print(len(made.generate("hi", SamplingParams(max_tokens=2), use_tqdm=False)), flush=True)
elif sys.argv[2] == "interrupt":
    made.generate(["hi"] * 64, SamplingParams(max_tokens=900, ignore_eos=True), use_tqdm=False)
"""


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["exit", "interrupt", pytest.param("fork", marks=pytest.mark.slow)])
def test_h346_a_process_ends_soon_and_leaves_nothing(any_model: Path, ending: str):
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT, str(any_model), ending]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        if ending == "interrupt":
            time.sleep(0.5)  # into the middle of generating
            process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0 if ending != "interrupt" else "KeyboardInterrupt" in errors
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
