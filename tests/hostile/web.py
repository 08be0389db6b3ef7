"""A, B, C: addresses that media may not come from, hosts that misbehave, and paths.

Addresses lead to the trap, a web server on loopback that answers with a good picture: a request that reaches it is
answered 200, and its visitors are counted besides.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hostile.cases import BLOCKED, LISTED, MESSAGES, OK, RESPONSES, TOKENIZE, Case, Table, table
from hostile.world import PNG, World
from server import samples
from server.bodies import AUDIO_URL, IMAGE, PNG_URL, VIDEO, audio_url, chat, image, image_part, part, video_url
from server.live import user

FETCH_FAILED, INVALID = "media_fetch_failed", "invalid_media"

REFUSED: dict[str, list[str]] = {
    # @ is where the trap's port stands.
    "H-001": ["http://127.0.0.1@/x.png"],
    "H-002": ["http://localhost@/", "http://localhost.localdomain@/", "http://a.localhost@/", "http://x.internal@/"],
    "H-003": ["http://169.254.169.254/latest/meta-data/"],
    "H-004": [
        "http://169.254.170.2/",
        "http://100.100.100.200/",
        "http://168.63.129.16/",
        "http://192.0.0.192/",
        "http://[fd00:ec2::254]/",
    ],
    "H-005": [
        "http://10.0.0.1/",
        "http://172.16.0.1/",
        "http://192.168.0.1/",
        "http://100.64.0.1/",
        "http://198.18.0.1/",
    ],
    "H-006": ["http://0.0.0.0@/", "http://0@/", "http://[::]@/"],
    "H-007": ["http://2130706433@/"],
    "H-008": ["http://0177.0.0.1@/", "http://017700000001@/"],
    "H-009": ["http://0x7f.1@/", "http://0x7f000001@/", "http://127.0.0.0x1@/"],
    "H-010": ["http://127.1@/", "http://127.0.1@/"],
    "H-011": ["http://[::1]@/", "http://[::ffff:127.0.0.1]@/", "http://[::ffff:7f00:1]@/"],
    "H-012": ["http://[::127.0.0.1]@/"],
    "H-013": ["http://[64:ff9b::a9fe:a9fe]/", "http://[64:ff9b:1::a9fe:a9fe]/"],
    "H-014": ["http://[2002:a9fe:a9fe::1]/", "http://[2001:0:4136:e378:8000:63bf:3fff:fdd2]/"],
    "H-015": [
        "http://[fe80::1%25lo]@/",
        "http://[fe80::1]@/",
        "http://[fec0::1]/",
        "http://[ff02::1]/",
        "http://224.0.0.1/",
        "http://255.255.255.255/",
    ],
    "H-016": ["http://allowed.test\x01127.0.0.1@/", "http://allowed.test:80\x01127.0.0.1@/"],
    "H-017": ["http://127.0.0.1@\\\x01allowed.test/", "http://allowed.test\\\x01127.0.0.1@/"],
    "H-018": ["http:\\\\127.0.0.1@\\", "http:/127.0.0.1@/", "http:///127.0.0.1@/", "http:127.0.0.1@"],
    "H-019": ["http://127.0.0.1@#\x01allowed.test/", "http://127.0.0.1@?\x01allowed.test/"],
    "H-020": ["http://１２７.0.0.1@/", "http://①②⑦.0.0.1@/", "http://127。0。0。1@/"],
    "H-021": [
        "http://allowed.test。evil.test/",
        "http://allowed.te\u017ft/",
        "http://\u212aelvin.test/",
        "http://allowed\u00ad.test/",
        "http://allowed\u200d.test/",
    ],
    "H-022": [
        "http://a.test%00.b.test/",
        "http://127.0.0.1%2f\x01a.test",
        "http://127%2e0%2e0%2e1@/",
        "http://%31%32%37.0.0.1@/",
    ],
    "H-023": [
        "http://127.0\t.0.1@/",
        "ht\ntp://127.0.0.1@/",
        "http://127.0.0.1\r@/",
        " http://127.0.0.1@/",
        "http://1 .test/",
    ],
    "H-024": ["http://127.0.0.1@/a\r\nX-Injected:1"],
    "H-026": [f"http://a.test:{port}/" for port in ("22", "6379", "25", "0", "65536", "99999", "-1")],
    "H-027": [
        "ftp://a.test/",
        "gopher://a.test/",
        "dict://a.test/",
        "ldap://a.test/",
        "jar:http://a.test!/",
        "unix:/x",
        "javascript:0",
        "httpx://a.test/",
        "a.test/x.png",
        "//127.0.0.1@/",
        "HTTP://127.0.0.1@/",
    ],
    "H-040": ["http://a.test/" + "a" * 1_000_000, "http://a.test/?" + "&".join(f"k{i}=1" for i in range(10_000))],
    "H-041": ["http://127.0.0.1:1/", "http://10.255.255.1:81/", "http://127.0.0.1@/"],
    # Names of a name server that answers with addresses inside.
    "H-028": ["http://two.test@/", "http://inner.test@/", "http://mapped.test@/", "http://tunnel.test@/"],
    "H-030": ["http://six.test@/"],
}
"""What nobody may fetch by default. \\x01 stands for a written @."""


def trapped(url: str) -> Callable[[World], str]:
    return lambda world: url.replace("@", f":{world.trap.port}").replace("\x01", "@")


def refused(url: Callable[[World], str], make: Callable[[str], Any] = image, param: str = IMAGE, **more: Any) -> Case:
    return Case(lambda world: make(url(world)), 400, param, BLOCKED, **more)


ADDRESSES: Table = {
    f"{number} {position}": refused(trapped(url))
    for number, urls in REFUSED.items()
    for position, url in enumerate(urls)
}


def _own_name(world: World) -> str:
    return f"http://127.0.0.1:{world.servers['public'].port}/health"


def _responses(url: str) -> dict[str, Any]:
    return {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": url}]}], "max_output_tokens": 2}


def _anthropic(url: str) -> dict[str, Any]:
    return {
        "model": "tiny",
        "max_tokens": 2,
        "messages": user([{"type": "image", "source": {"type": "url", "url": url}}]),
    }


def _counted(url: str) -> dict[str, Any]:
    body = _anthropic(url)
    del body["max_tokens"]
    return body


LOOPBACK = trapped("http://127.0.0.1@/x.png")
FIELDS: Table = {
    "H-037 a video": refused(LOOPBACK, video_url, VIDEO),
    "H-037 a sound": refused(LOOPBACK, audio_url, AUDIO_URL),
    "H-037 an input_image": refused(
        LOOPBACK, lambda url: part(type="input_image", image_url=url), "messages[0].content[0]"
    ),
    "H-037 an image of Hugging Face": refused(LOOPBACK, lambda url: part(type="image", image=url), "messages[0]"),
    "H-037 a tool's answer": refused(
        LOOPBACK,
        lambda url: chat(messages=[{"role": "tool", "tool_call_id": "a", "content": [image_part(url)]}]),
        "messages[0]",
    ),
    "H-037 an earlier message": refused(
        LOOPBACK, lambda url: chat(messages=[*user([image_part(url)]), *user("?")]), "messages[0]"
    ),
    "H-037 responses": refused(LOOPBACK, _responses, "input", path=RESPONSES),
    "H-037 messages": refused(LOOPBACK, _anthropic, "messages", path=MESSAGES),
    "H-037 counting tokens": refused(LOOPBACK, _counted, "messages", path=MESSAGES + "/count_tokens"),
    "H-037 tokenize": refused(LOOPBACK, lambda url: {"messages": user([image_part(url)])}, "messages", path=TOKENIZE),
    "H-037 rendering": refused(LOOPBACK, lambda url: chat(messages=user([image_part(url)]), stream=True), "messages"),
    "H-038 the server itself": refused(_own_name),
    "H-039 5,000 addresses": Case(
        lambda world: chat(messages=user([image_part(f"{world.url('/x')}?{n}") for n in range(5000)])), 400, "messages"
    ),
    "H-039 65 addresses": Case(
        lambda world: chat(messages=user([image_part(f"http://127.0.0.1:{world.trap.port}/{n}") for n in range(65)])),
        400,
        "messages",
        "invalid_request",
    ),
    "H-031 1,000 answers, all inside": refused(trapped("http://many.test@/")),
    "H-031 a name server that hangs": Case(
        lambda world: image(f"http://hang.test:{world.trap.port}/"), 502, IMAGE, FETCH_FAILED, slow=True
    ),
    "H-042 TLS that nobody signed": Case(
        lambda world: image(f"https://127.0.0.1:{world.host.port}/x.png"), (502, 504), IMAGE, FETCH_FAILED, LISTED
    ),
}


def listed(path: str, status: int = OK, code: str | None = None, name: str = "127.0.0.1", **more: Any) -> Case:
    return Case(
        lambda world: image(world.url(path, name)), status, IMAGE if status != OK else None, code, LISTED, **more
    )


def outside(url: Callable[[World], str]) -> Case:
    return Case(lambda world: image(url(world)), 400, IMAGE, BLOCKED, LISTED)


LISTS: Table = {
    "H-024 an escaped line end": listed("/x%0d%0aX-Injected:1"),
    "H-025 the listed name": listed("/x.png", name="allowed.test"),
    "H-025 in capitals": listed("/x.png", name="ALLOWED.TEST"),
    "H-025 with a dot behind": listed("/x.png", name="allowed.test."),
    "H-025 with more behind": listed("/x.png", 400, BLOCKED, "allowed.test.evil.test"),
    "H-025 with more before": listed("/x.png", 400, BLOCKED, "evilallowed.test"),
    "H-026 another port of a listed name": outside(lambda world: f"http://allowed.test:{world.trap.port}/"),
    "H-026 the usual port of a listed name": outside(lambda world: f"http://unlisted.test:{world.host.port}/"),
    "H-027 HTTP in capitals": Case(lambda world: image(world.url("/x").replace("http", "HTTP")), OK, server=LISTED),
    "H-028 a suffix does not lead inside": listed("/x.png", 400, BLOCKED, "inner.suffix.test"),
    "H-028 a listed name with the metadata address": listed("/x.png", 400, BLOCKED, "metadata.test"),
    "H-003 metadata beside a list": outside(lambda world: "http://169.254.169.254/"),
    "H-016 credentials": outside(lambda world: f"http://u:p@127.0.0.1:{world.host.port}/x.png"),
    "H-032 to loopback": listed("/redirect?http://127.0.0.1:1/", 400, BLOCKED),
    "H-033 to a file": listed("/redirect?file:///etc/passwd", 400, BLOCKED),
    "H-033 to another port": outside(lambda world: world.url(f"/redirect?http://127.0.0.1:{world.trap.port}/x")),
    "H-033 to a name that is not listed": outside(
        lambda world: world.url(f"/redirect?http://e.test:{world.host.port}/")
    ),
    "H-034 round and round": listed("/loop", 422, FETCH_FAILED),
    "H-034 four hops": listed("/chain/4", 422, FETCH_FAILED),
    "H-034 three hops": listed("/chain/3"),
    "H-034 a relative host": outside(lambda world: world.url(f"/redirect?//127.0.0.1:{world.trap.port}/")),
    "H-034 backslashes": listed("/redirect?\\\\127.0.0.1", 400, BLOCKED),
    "H-085 to data": listed("/redirect?" + PNG_URL[:60], 400, BLOCKED),
    "H-035 a page that refreshes": listed("/refresh", 400, INVALID),
    "H-045 drops": listed("/drip", 504, FETCH_FAILED),
    "H-046 silence": listed("/silence", 504, FETCH_FAILED),
    "H-047 without end": listed("/endless", 413),
    "H-048 announces 10 GB": listed("/huge", 413),
    "H-049 more than announced": listed("/short-length", (400, 422, 502)),
    "H-049 less than announced": listed("/long-length", (413, 502)),
    "H-050 compressed": listed("/gzip", 422, FETCH_FAILED),
    "H-050 compressed twice": listed("/nested", 422, FETCH_FAILED),
    "H-050 brotli": listed("/br", 422, FETCH_FAILED),
    "H-050 zstd": listed("/zstd", 422, FETCH_FAILED),
    **{
        f"H-051 status {status}": listed(f"/status/{status}", 422, FETCH_FAILED) for status in (404, 403, 410, 204, 206)
    },
    **{f"H-051 status {status}": listed(f"/status/{status}", 502, FETCH_FAILED) for status in (500, 503)},
    "H-051 status 101": listed("/status/101", (422, 502, 504), FETCH_FAILED),
    "H-052 a page": listed("/html", 400, INVALID),
    "H-052 an error in JSON": listed("/error", 400, INVALID),
    "H-052 nothing": listed("/empty", 400, INVALID),
    "H-053 of a wrong type": listed("/wrong-type"),
    "H-054 300 headers": listed("/many-headers", (OK, 502)),
    "H-054 a header of 1 MB": listed("/large-header", 502, FETCH_FAILED),
    **{f"H-055 cut after {eighth}/8": listed(f"/cut/{eighth}", 502, FETCH_FAILED) for eighth in range(1, 8)},
    "H-056 no HTTP": listed("/ancient", 502, FETCH_FAILED),
    "H-135 more bytes than a video may have": Case(
        lambda world: video_url(world.url("/huge")), 413, VIDEO, server=LISTED
    ),
}


def file_url(form: str, status: int = 400, code: str = BLOCKED, make: Callable[[str], Any] = image) -> Case:
    """{D} is the folder that may be read from."""
    return Case(
        lambda world: make(form.replace("{D}", str(world.folder))),
        status,
        "messages[0].content[0]" if status != OK else None,
        code if status != OK else None,
        LISTED,
    )


FILES: Table = {
    "H-061 the file of users": refused(lambda _: "file:///etc/passwd"),
    "H-061 a good picture, files off": refused(lambda world: f"file://{world.folder}/inner/ok.png"),
    "H-061 a bare path, files off": refused(
        lambda world: f"{world.folder}/inner/ok.png", lambda url: part(type="image", image=url), "messages[0]"
    ),
    "H-061 a good picture, files on": file_url("file://{D}/inner/ok.png", OK),
    "H-062 dots": file_url("file://{D}/../secret.png"),
    "H-062 escaped dots": file_url("file://{D}/%2e%2e/secret.png"),
    "H-062 an escaped slash": file_url("file://{D}/..%2fsecret.png"),
    "H-062 four dots": file_url("file://{D}/....//secret.png"),
    "H-062 in and out": file_url("file://{D}/inner/../../secret.png"),
    "H-063 a link to a file": file_url("file://{D}/link.png"),
    "H-063 a link to a folder": file_url("file://{D}/out/secret.png"),
    "H-065 a pipe": file_url("file://{D}/pipe.png"),
    "H-065 a folder": file_url("file://{D}/inner"),
    "H-065 the folder": file_url("file://{D}"),
    "H-065 a device": file_url("file:///dev/zero"),
    "H-065 no file": file_url("file://{D}/none.png"),
    "H-066 a sparse terabyte": file_url("file://{D}/sparse.png", 413, "request_too_large"),
    "H-066 what the kernel says of a process": file_url("file:///proc/self/environ"),
    "H-067 a share": file_url("file://host/{D}/inner/ok.png"),
    "H-067 four slashes": file_url("file:////{D}/inner/ok.png"),
    "H-067 a drive": file_url("file://C:\\x.png"),
    "H-067 backslashes": file_url("file:{D}\\inner\\ok.png"),
    "H-068 NUL": file_url("file://{D}/inner/ok.png%00.png"),
    "H-068 a line end": file_url("file://{D}/a%0ab.png"),
    "H-068 a long name": file_url("file://{D}/" + "a" * 4096),
    "H-068 no UTF-8": file_url("file://{D}/%ff%fe"),
    **{
        f"H-069 {name[:12] or 'empty'}": Case(chat(model=name), 404, "model")
        for name in ("../x", "/etc/passwd", "a/../../b", "x" * 10_240)
    },
    "H-069 no name is the model there is": Case(chat(model=""), OK),
    **{
        f"H-070 {name[:12]}": Case(chat(model=name), 404, "model")
        for name in ("tiny/..", "tiny:../x", "https://a.test/x", "~/x", "$HOME", "tiny.")
    },
    "H-072 a zip as a picture": Case(image(samples.data_url("image/png", b"PK\x03\x04" + bytes(60))), 400, IMAGE),
    "H-072 a tar as a picture": Case(image(samples.data_url("image/png", b"../x" + bytes(508))), 400, IMAGE),
}

CASES = table(ADDRESSES, FIELDS, LISTS, FILES)
GOOD = samples.data_url("image/png", PNG)
