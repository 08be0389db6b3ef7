"""Load by HTTP, against a server on a socket."""

import asyncio
import json

import pytest

from sensorium.bench.datasets import Ask
from sensorium.bench.http import Outcome, Target, TokenCounter, run
from sensorium.bench.serving import keeps, most_at_once, read_goodput, summarise
from sensorium.cli import main
from sensorium.errors import ConfigError

SHORT = ["--num-prompts", "6", "--input-len", "12", "--output-len", "5", "--num-warmups", "0"]


def bench(live, capsys, *words: str) -> dict:
    assert main(["bench", "serve", "--base-url", live.url, *SHORT, *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("backend", ["openai", "openai-chat"])
def test_a_load_test_counts_what_was_sent_and_answered(live, capsys, backend):
    found = bench(live, capsys, "--backend", backend, "--goodput", "ttft:600000", "e2el:600000")
    assert (found["completed"], found["failed"], found["model"]) == (6, 0, "tiny")
    assert found["total_output_tokens"] == 6 * 5
    assert found["total_input_tokens"] >= 6 * 10
    assert found["request_goodput"] == found["request_throughput"] > 0
    rows = {row["metric"]: row for row in found["rows"]}
    assert list(rows) == ["ttft_ms", "tpot_ms", "itl_ms", "e2el_ms"]
    assert 0 < rows["ttft_ms"]["median"] <= rows["e2el_ms"]["median"] <= rows["e2el_ms"]["p99"]


def test_pictures_are_sent_and_a_table_is_printed(live, capsys, tmp_path):
    words = ["--dataset-name", "random-mm", "--random-mm-bucket-config", '{"(40, 30, 1)": 1}', "--max-concurrency", "2"]
    file = tmp_path / "result.json"
    assert main(["bench", "serve", "--base-url", live.url, *SHORT, *words, "--output-json", str(file)]) == 0
    assert "ttft_ms" in capsys.readouterr().out
    found = json.loads(file.read_text())
    assert (found["completed"], found["max_concurrent_requests"]) == (6, 2)
    assert found["total_input_tokens"] > 6 * 50


def test_a_server_that_refuses_ends_the_run_with_its_reason(live, capsys):
    assert main(["bench", "serve", "--base-url", live.url, *SHORT, "--num-warmups", "1", "--model", "other"]) == 1
    assert "other" in capsys.readouterr().err
    assert main(["bench", "serve", "--base-url", live.url, *SHORT, "--model", "other", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["completed"], found["failed"]) == (0, 6)
    assert "404" in found["errors"][0]


def test_no_server_is_one_line(capsys):
    assert main(["bench", "serve", "--base-url", "http://127.0.0.1:9", *SHORT]) == 1
    assert "sensorium serve" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [["--request-rate", "0"], ["--goodput", "ttft"], ["--goodput", "fun:1"], ["--max-concurrency", "0"],
              ["--num-prompts", "0"], ["--dataset-name", "custom"],
              ["--dataset-name", "random-mm", "--backend", "openai"]]
)  # fmt: skip
def test_wrong_settings_are_refused_by_name(words, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["bench", "serve", "--model", "m", *words])
    assert exit_.value.code == 2
    assert words[-2] in capsys.readouterr().err


class Clock:
    """Time that passes only where somebody sleeps."""

    def __init__(self) -> None:
        self.now = 100.0

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(0)  # what was started gets to its first line
        self.now += seconds


async def test_requests_leave_at_their_times_however_long_answers_take(live):
    clock, times = Clock(), [0.0, 5.0, 5.0, 60.0]
    target = Target(live.url, model="tiny")
    asks = [Ask("go", 3)] * 4
    outcomes = await asyncio.wait_for(run(target, asks, times, clock=lambda: clock.now, sleep=clock.sleep), 60)
    assert [outcome.error for outcome in outcomes] == [None] * 4
    assert [outcome.started_s for outcome in outcomes] == pytest.approx(times)


def test_texts_are_counted_by_the_server(live):
    counter = TokenCounter(Target(live.url, model="tiny"))
    assert counter("good morning") == len(live.engine.tokenizer.encode("good morning"))
    assert counter.exact
    counter.close()


def test_without_tokenize_texts_are_estimated(live):
    counter = TokenCounter(Target(live.url + "/none", model="tiny"))
    assert counter("x" * 40) == 10
    assert not counter.exact
    counter.close()


def test_numbers_of_a_run():
    fast = Outcome(0.0, 0.1, [0.01, 0.03], 0.2, 10, 6)
    slow = Outcome(0.1, 0.5, [0.2], 1.9, 20, 3)
    lost = Outcome(0.3, error="503: busy")
    found = summarise([fast, slow, lost], [50.0], read_goodput(["ttft:200", "itl:25"]))
    assert found["duration_s"] == 2.0
    assert (found["completed"], found["failed"], found["errors"]) == (2, 1, ["503: busy"])
    assert (found["request_throughput"], found["request_goodput"]) == (1.0, 0.5)
    assert (found["output_throughput"], found["total_token_throughput"]) == (4.5, 19.5)
    rows = {row["metric"]: row for row in found["rows"]}
    assert rows["itl_ms"]["p50"] == pytest.approx(30)
    assert rows["tpot_ms"]["mean"] == pytest.approx((20 + 700) / 2)
    assert not keeps(fast, {"tpot": 19.0})
    assert most_at_once([fast, slow, lost]) == 2
    assert summarise([lost], [99.0], {})["rows"][0]["p99"] is None


def test_limits_are_read():
    assert read_goodput(["ttft:500", "e2el:1e4"]) == {"ttft": 500.0, "e2el": 10000.0}
    for wrong in ("ttft:", "ttft:-1", "latency:5"):
        with pytest.raises(ConfigError, match="goodput"):
            read_goodput([wrong])
