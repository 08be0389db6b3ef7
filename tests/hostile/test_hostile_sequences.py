"""Hostile cases that take several requests, or several users."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hostile.cases import CHAT, COMPLETIONS, OK, RESPONSES
from hostile.tensors import GOOD, MARKER, encoded, npy, whole
from hostile.world import KEYS, Target, World
from server import samples
from server.bodies import PNG_URL, audio, chat, image, image_part, part, video
from server.live import eventually, user

OTHER_URL = samples.data_url("image/png", samples.picture(seed=7))
GREEDY = {"temperature": 0, "max_tokens": 12, "ignore_eos": True}


def text(answer: Any) -> str:
    return answer["choices"][0]["message"]["content"]


def cached(answer: Any) -> int:
    return answer["usage"]["prompt_tokens_details"]["cached_tokens"]


def ask(server: Target, *contents: Any, key: str | None = None, **fields: Any) -> Any:
    status, answer = server.send(chat(messages=user([*contents]), **{**GREEDY, **fields}), CHAT, key)
    assert status == OK, answer
    return answer


# ---- A, B: hosts ----


def test_h029_a_name_is_looked_up_once_for_a_connection(hostile: World):
    """The first answer was checked, and the connection goes there; the second would be the metadata service."""
    before = hostile.asked()["rebind.test"]
    status, _ = hostile.servers["listed"].send(image(hostile.url("/x.png", "rebind.test")), CHAT)
    assert status == OK
    assert hostile.asked()["rebind.test"] == before + 1


def test_h036_h044_h060_nothing_personal_is_sent(hostile: World):
    hostile.host.heads.clear()
    for _ in range(2):
        assert hostile.servers["listed"].send(image(hostile.url("/cookie?H-044")), CHAT)[0] == OK
    for head in hostile.host.heads:
        names = {line.partition(b":")[0].lower() for line in head.split(b"\r\n")[1:] if line}
        assert names == {b"host", b"accept", b"accept-encoding", b"user-agent", b"connection"}
        assert not any(key.encode() in head for key in KEYS)


def test_h043_h267_the_log_has_no_query_and_no_control_characters(hostile: World):
    server = hostile.servers["listed"]
    server.send(image(hostile.url("/status/404?token=hidden")), CHAT)
    server.send(chat(messages=user("\x1b[31m\nERROR: forged"), user="a\x1b[31mb"), CHAT)
    log = "".join(server.log)
    assert "hidden" not in log
    assert "forged" not in log
    assert "\x1b" not in log


def test_h057_a_slow_host_holds_up_no_other(hostile: World):
    server = hostile.servers["listed"]
    with ThreadPoolExecutor(16) as pool:
        slow = [pool.submit(server.send, image(hostile.url(f"/silence/{n}")), CHAT) for n in range(12)]
        ask(server, image_part(PNG_URL))
        assert not any(one.done() for one in slow)
        assert all(one.result()[0] == 504 for one in slow)


def test_h058_equal_addresses_of_a_request_are_fetched_once(hostile: World):
    url = hostile.url("/slow/H-058")
    before = hostile.host.seen("/slow/H-058")
    ask(hostile.servers["listed"], *[image_part(url)] * 8)
    assert hostile.host.seen("/slow/H-058") == before + 1


def test_h059_every_request_uses_what_it_fetched(hostile: World):
    url = hostile.url("/alternating")
    answers = [ask(hostile.servers["listed"], image_part(url), "?", logprobs=True) for _ in range(3)]
    scores = [[token["logprob"] for token in one["choices"][0]["logprobs"]["content"]] for one in answers]
    assert scores[0] == pytest.approx(scores[2], abs=1e-3)
    assert scores[0] != pytest.approx(scores[1], abs=1e-3)


def test_h041_what_is_refused_says_nothing_of_ports(hostile: World):
    urls = ["http://127.0.0.1:1/", f"http://127.0.0.1:{hostile.trap.port}/", "http://10.255.255.1/"]
    answers = [hostile.servers["public"].send(image(url), CHAT) for url in urls]
    assert answers == [answers[0]] * 3


def test_h063_a_link_that_is_swapped_in_between_leads_nowhere(hostile: World):
    """A name in the folder that is now a picture, now a link to one outside, and never read through the link."""
    name, picture = hostile.folder / "swapped.png", samples.picture(32, 32)
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            for make in (lambda new: new.write_bytes(picture), lambda new: new.symlink_to("../secret.png")):
                new = hostile.folder / "new"
                make(new)
                new.replace(name)

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        found = [hostile.servers["listed"].send(image(f"file://{name}"), CHAT) for _ in range(20)]
    finally:
        stop.set()
        thread.join()
    assert {status for status, _ in found} <= {OK, 400}
    tokens = {a["usage"]["prompt_tokens_details"]["image_tokens"] for status, a in found if status == OK}
    assert len(tokens) <= 1


def test_h064_a_second_name_of_a_file_is_the_operators_choice(hostile: World):
    assert hostile.servers["listed"].send(image(f"file://{hostile.folder}/hard.png"), CHAT)[0] == OK


def test_h073_nothing_is_written_to_disk(hostile: World):
    server = hostile.servers["public"]
    ask(server, image_part(PNG_URL))
    open_files = [os.readlink(link) for link in Path(f"/proc/{server.process.pid}/fd").iterdir() if link.is_symlink()]
    named = [name for name in open_files if not name.endswith("(deleted)")]
    assert not [name for name in named if name.startswith("/tmp") and "hostile" not in name]


@pytest.mark.parametrize("name", ["../../x", "%2e%2e%2fx", "resp_../x"])
def test_h074_ids_are_no_paths(hostile: World, name: str):
    for path in (f"{RESPONSES}/{name}", f"/v1/models/{name}"):
        status, _, answer = hostile.servers["public"].request("GET", path)
        assert status == 404, answer


# ---- E, F, G, H: media ----


@pytest.mark.slow
def test_h089_many_large_pictures_at_once(hostile: World):
    """One-colour pictures just under the limit: each worker holds one, the server none."""
    from hostile.pictures import one_colour

    url = samples.data_url("image/png", one_colour(7000))
    server = hostile.servers["public"]
    server.watch_peak()
    before = server.memory()
    with ThreadPoolExecutor(4) as pool:
        found = list(
            pool.map(
                lambda n: server.send(chat(messages=user([image_part(url + "=" * 0)] * 4), seed=n), CHAT), range(4)
            )
        )
    assert {status for status, _ in found} <= {OK, 400, 413, 429}
    assert all(peak - before[pid] < 256 << 20 for pid, peak in server.peak().items())


def test_h113_turned_sizes_are_different_pictures(hostile: World):
    server = hostile.servers["public"]
    wide, high = (samples.data_url("image/png", samples.picture(*size)) for size in ((300, 100), (100, 300)))
    first, second = (ask(server, image_part(url), "?", logprobs=True) for url in (wide, high))
    assert first["choices"][0]["logprobs"] != second["choices"][0]["logprobs"]


def decoders(server: Target) -> list[int]:
    """Processes below the server, but for its engine."""
    found, pids = [], [server.process.pid]
    while pids:
        pid = pids.pop()
        for task in Path(f"/proc/{pid}/task").iterdir():
            children = [int(child) for child in (task / "children").read_text().split()]
            pids += children
            found += children
    return [pid for pid in found if pid != server.engine_pid]


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_h116_a_decoder_that_dies_is_replaced(hostile: World):
    server = hostile.servers["public"]
    ask(server, image_part(PNG_URL))
    killed = decoders(server)
    for pid in killed:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert eventually(lambda: all(map(gone, killed)))
    assert server.send(image(samples.data_url("image/png", samples.picture(seed=116))), CHAT)[0] == OK
    assert server.health()[0] == OK
    assert not server.disturbed()


@pytest.mark.slow
def test_h138_videos_do_not_hold_up_pictures(hostile: World):
    server = hostile.servers["public"]
    films = [video(samples.video(frames=40, side=64 + 2 * n)) for n in range(8)]
    with ThreadPoolExecutor(9) as pool:
        running = [pool.submit(server.send, film, CHAT) for film in films]
        ask(server, image_part(samples.data_url("image/png", samples.picture(seed=138))))
        found = [one.result() for one in running]
    assert [answer["error"] for status, answer in found if status != OK] == []


def test_h139_damage_has_the_same_answer_every_time(hostile: World):
    from hostile.recordings import damaged

    data = damaged(5)
    found = [hostile.servers["public"].send(video(data, num_frames=n), CHAT) for n in (2, 3, 2)]
    assert found[0][0] == found[2][0]
    if found[0][0] == OK:
        assert found[0][1]["usage"]["prompt_tokens"] == found[2][1]["usage"]["prompt_tokens"]


def test_h158_no_gadget_has_run(hostile: World):
    server = hostile.servers["listed"]
    for value in ("gASVAAAAAAAAAA==", encoded(npy(GOOD))):
        server.send(part(type="image_embeds", image_embeds=value), CHAT)
    assert not Path(MARKER).exists()


def test_h170_equal_bytes_of_another_shape_are_another_item(hostile: World):
    server = hostile.servers["listed"]
    good = {"type": "image_embeds", "image_embeds": whole(GOOD), "uuid": None}
    assert server.send(chat(messages=user([good])), CHAT)[0] == OK
    turned = {"type": "image_embeds", "image_embeds": whole(GOOD.reshape(128, 128))}
    assert server.send(chat(messages=user([turned])), CHAT)[0] == 400


# ---- I: caches ----


def test_h184_another_users_uuid_is_unknown(hostile: World):
    server, mark = hostile.servers["listed"], "H-184"
    ask(server, {**image_part(PNG_URL), "uuid": mark}, key=KEYS[0])
    named = {"type": "image_url", "image_url": None}
    ask(server, {**named, "uuid": mark}, key=KEYS[0])
    refused = [server.send(chat(messages=user([{**named, "uuid": uuid}])), CHAT, KEYS[1]) for uuid in (mark, "H-999")]
    assert [status for status, _ in refused] == [400, 400]
    messages = [answer["error"]["message"].replace(mark, "").replace("H-999", "") for _, answer in refused]
    assert messages[0] == messages[1]
    assert refused[0][1]["error"]["code"] == "mm_cache_miss"


def test_h185_a_uuid_with_other_bytes_changes_nothing_for_its_owner(hostile: World):
    server, mark = hostile.servers["listed"], "H-185"
    mine = ask(server, {**image_part(PNG_URL), "uuid": mark}, "?", key=KEYS[0], logprobs=True)
    ask(server, {**image_part(OTHER_URL), "uuid": mark}, "?", key=KEYS[1])
    again = ask(server, {"type": "image_url", "image_url": None, "uuid": mark}, "?", key=KEYS[0], logprobs=True)
    assert text(again) == text(mine)
    other = ask(server, {"type": "image_url", "image_url": None, "uuid": mark}, "?", key=KEYS[1], logprobs=True)
    assert other["choices"][0]["logprobs"] != mine["choices"][0]["logprobs"]


def test_h189_many_items_and_salts_leave_the_memory_flat(hostile: World):
    server = hostile.servers["public"]
    before = server.memory()
    for n in range(30):
        ask(
            server,
            image_part(samples.data_url("image/png", samples.picture(8, 8, seed=n))),
            cache_salt=f"s{n}",
            max_tokens=1,
        )
    for pid, used in server.memory().items():
        assert used - before[pid] < 96 << 20


def test_h190_what_one_key_asked_is_not_in_anothers_cache(hostile: World):
    server = hostile.servers["listed"]
    question = "The same long question. " * 8
    assert cached(ask(server, question, key=KEYS[0])) == 0
    assert cached(ask(server, question, key=KEYS[0])) > 0
    assert cached(ask(server, question, key=KEYS[1])) == 0
    assert cached(ask(server, question, key=KEYS[0], cache_salt="x")) == 0


def test_h195_the_same_picture_in_every_turn_is_encoded_once(hostile: World):
    server = hostile.servers["public"]
    turns: list[Any] = []
    for n in range(20):
        turns += [*user([image_part(OTHER_URL), f"Turn {n}"]), {"role": "assistant", "content": "yes"}]
    status, answer = server.send(chat(messages=[*turns, *user("?")]), CHAT)
    assert status == OK, answer
    assert answer["usage"]["prompt_tokens_details"]["image_tokens"] == 20 * 64


# ---- K, L, M: generation ----


def test_h226_a_stop_text_cuts_alike_streamed_and_whole(hostile: World):
    server = hostile.servers["public"]
    whole_text = text(ask(server, "Tell me a story.", max_tokens=30))
    for start in (3, 9, 14):
        stop = whole_text[start : start + 5]
        cut = text(ask(server, "Tell me a story.", max_tokens=30, stop=[stop]))
        assert cut == whole_text[: whole_text.index(stop)]
        assert streamed(server, stop=[stop], max_tokens=30) == cut


def streamed(server: Target, **fields: Any) -> str:
    body = chat(messages=user(["Tell me a story."]), **{**GREEDY, **fields, "stream": True})
    _, _, answer = server.request("POST", CHAT, json.dumps(body).encode(), server.headers)
    chunks = [json.loads(line[6:]) for line in answer.decode().split("\n\n")[:-2]]
    return "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])


def test_h230_a_seed_repeats_its_answer(hostile: World):
    server = hostile.servers["public"]
    same = [text(ask(server, "Tell me a story.", temperature=1.5, seed=11)) for _ in range(2)]
    assert same[0] == same[1]


def test_h263_h269_characters_are_never_cut_in_a_stream(hostile: World):
    server = hostile.servers["public"]
    for seed in range(5):
        fields = {"temperature": 2.0, "seed": seed, "max_tokens": 25}
        assert streamed(server, **fields) == text(ask(server, "Tell me a story.", **fields))


def test_h223_tokens_that_another_forbids_are_still_mine(hostile: World):
    server = hostile.servers["public"]
    alone = text(ask(server, "Tell me a story."))
    with ThreadPoolExecutor(4) as pool:
        odd = [
            pool.submit(server.send, chat(allowed_token_ids=[n], max_tokens=30, ignore_eos=True), CHAT)
            for n in (0, 1500, 1534)
        ]
        assert text(ask(server, "Tell me a story.")) == alone
        assert {one.result()[0] for one in odd} <= {OK, 400}


@pytest.mark.slow
def test_h248_thousands_of_forms_leave_the_memory_flat(hostile: World):
    server = hostile.servers["public"]
    for n in range(20):
        server.send(chat(structured_outputs={"regex": f"warm{n}"}, max_tokens=2), CHAT)
    before = server.memory()
    for n in range(300):
        assert server.send(chat(structured_outputs={"regex": f"x{n}|y{n}"}, max_tokens=2), CHAT)[0] == OK
    assert all(used - before[pid] < 96 << 20 for pid, used in server.memory().items())


def test_h253_openers_without_end_cost_no_time(hostile: World):
    """The parser of tool calls meets what no model should write: long, nested, never closed."""
    from sensorium.parsers.tools import tool_parser

    parser = tool_parser("hermes", ())
    begun = time.process_time()
    for _ in range(2000):
        parser.feed("<tool_call>" * 10)
    parser.finish()
    assert time.process_time() - begun < 10


def test_h257_templates_are_refused_on_every_route(hostile: World):
    template = {"chat_template": "{{ 7 * 7 }}"}
    bodies = {
        CHAT: chat(**template), "/tokenize": {"messages": user("hi"), **template},
        "/v1/messages": {"model": "tiny", "max_tokens": 1, "messages": user("hi"), **template},
        RESPONSES: {"input": "hi", **template}, COMPLETIONS: {"prompt": "hi", **template},
        "/v1/messages/count_tokens": {"model": "tiny", "messages": user("hi"), **template},
    }  # fmt: skip
    for path, body in bodies.items():
        status, answer = hostile.servers["public"].send(body, path)
        assert status == 400, (path, answer)
        assert "chat_template" in json.dumps(answer)


def test_h237_h292_one_key_that_floods_leaves_the_other_alone(hostile: World):
    server = hostile.servers["listed"]
    with ThreadPoolExecutor(24) as pool:
        flood = [pool.submit(server.send, chat(max_tokens=20, ignore_eos=True), CHAT, KEYS[0]) for _ in range(60)]
        status, answer = server.send(chat(), CHAT, KEYS[1])
        assert status == OK, answer
        assert {one.result()[0] for one in flood} <= {OK, 429}


def test_h291_objects_of_another_key_do_not_exist(hostile: World):
    server = hostile.servers["listed"]
    status, answer = server.send({"input": "hi", "max_output_tokens": 2}, RESPONSES, KEYS[0])
    assert status == OK
    for method, path in (("GET", ""), ("POST", "/cancel"), ("DELETE", "")):
        headers = {**server.headers, "authorization": f"Bearer {KEYS[1]}"}
        found, _, _ = server.request(
            method, f"{RESPONSES}/{answer['id']}{path}", b"{}" if method == "POST" else None, headers
        )
        assert found in (404, 405), (method, path)


def test_h295_strangers_make_no_labels(hostile: World):
    server = hostile.servers["public"]

    def labels() -> int:
        return server.request("GET", "/metrics")[2].count(b"\n")

    server.send(chat(model="nobody"), CHAT)
    before = labels()
    for n in range(50):
        server.send(chat(model=f"nobody{n}", user=f"u{n}"), CHAT)
        server.request("GET", f"/guess/{n}")
    assert labels() - before < 40


def test_h296_errors_say_nothing_of_the_inside(hostile: World):
    """Beside what every case checks: what a request holds is not repeated at length."""
    for body in (chat(temperature="x" * 2_000_000), {"messages": "y" * 2_000_000}, chat(**{"k" * 5000: 1})):
        _, answer = hostile.servers["public"].send(body, CHAT)
        assert len(json.dumps(answer)) < 1500


def test_h143_h163_poison_stays_with_its_sender(hostile: World):
    server = hostile.servers["listed"]
    mine = text(ask(server, "Tell me a story."))
    for seconds in (0.3, 0.4):
        server.send(audio(samples.float_wav([float("nan"), 1e38] * int(8000 * seconds))), CHAT)
    assert text(ask(server, "Tell me a story.")) == mine
