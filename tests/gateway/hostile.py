"""Requests that no client sends by accident, as bytes, and how each is answered.

"200": it is odd but means one thing alone, so it is served, once, and metered. Otherwise the status and the
code of the error.
"""

import gzip
import json
from typing import Any, Final

from tests.gateway.harness import OTHER_TOKEN, TOKEN

CHAT: Final = [{"role": "user", "content": "hello there"}]
GOOD: Final = json.dumps({"model": "chat", "messages": CHAT, "max_tokens": 5}).encode()
LINE: Final = "POST /v1/chat/completions HTTP/1.1"
KEY: Final = f"Authorization: Bearer {TOKEN}"
LENGTH: Final = f"Content-Length: {len(GOOD)}"
CHUNKED: Final = "Transfer-Encoding: chunked"

Case = tuple[str, bytes, str]
"""Its name, what is sent, and the answer."""


def message(line: str, *headers: str, body: bytes = GOOD, host: str = "Host: gateway") -> bytes:
    """A request with the key and these headers alone; it ends the connection."""
    head = [line, *([host] if host else []), "Connection: close", KEY, *headers]
    return "\r\n".join(head).encode("latin-1") + b"\r\n\r\n" + body


def request(body: bytes = GOOD, *headers: str, line: str = LINE) -> bytes:
    """A request whose length is as announced."""
    return message(line, f"Content-Length: {len(body)}", *headers, body=body)


def path(target: str) -> bytes:
    """A good request to another target."""
    return request(line=f"POST {target} HTTP/1.1")


def chunked(*chunks: bytes, last: bytes = b"0\r\n\r\n") -> bytes:
    """A body in chunks."""
    return b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + last


def asked(**fields: Any) -> bytes:
    """A good request with other fields."""
    return request(json.dumps(json.loads(GOOD) | fields).encode())


def added(text: str) -> bytes:
    """A good request whose body has this at its end."""
    return request(GOOD[:-1] + b"," + text.encode() + b"}")


def posted(*headers: str, body: bytes = GOOD) -> bytes:
    """A POST with these headers alone."""
    return message(LINE, *headers, body=body)


SMUGGLED: Final = request(line="GET /v1/models HTTP/1.1")
SECOND: Final = b"GET /v1/models HTTP/1.1\r\nHost: gateway\r\n\r\n"
TRAILERS: Final = b"0\r\nX-Trailer: b\r\nContent-Length: 1\r\n\r\n"
FRAMING: Final[list[Case]] = [
    ("length and chunks", posted(LENGTH, CHUNKED, body=chunked(GOOD)), "400 invalid_request"),
    (
        "chunks that hide a request",
        posted("Content-Length: 4", CHUNKED, body=b"0\r\n\r\n" + SMUGGLED),
        "400 invalid_request",
    ),
    ("two equal lengths", posted(LENGTH, LENGTH), "400 invalid_request"),
    ("two lengths", posted(LENGTH, "Content-Length: 1"), "400 invalid_request"),
    ("a list of lengths", posted(f"{LENGTH}, {len(GOOD)}"), "400 invalid_request"),
    ("a length with a sign", posted(f"Content-Length: +{len(GOOD)}"), "400 invalid_request"),
    ("a negative length", posted("Content-Length: -1"), "400 invalid_request"),
    ("a length in hex", posted("Content-Length: 0x10"), "400 invalid_request"),
    ("a length beyond 64 bits", posted("Content-Length: 99999999999999999999999"), "400 invalid_request"),
    ("a length over the limit", posted("Content-Length: 99999999999"), "413 request_too_large"),
    (
        "an unknown coding",
        posted("Transfer-Encoding: xchunked", body=chunked(GOOD)),
        "501 unsupported_encoding",
    ),
    (
        "chunks not last",
        posted("Transfer-Encoding: chunked, identity", body=chunked(GOOD)),
        "501 unsupported_encoding",
    ),
    (
        "a coding before chunks",
        posted("Transfer-Encoding: gzip, chunked", body=chunked(GOOD)),
        "501 unsupported_encoding",
    ),
    ("the coding identity", posted("Transfer-Encoding: identity", LENGTH), "400 invalid_request"),
    ("chunks twice", posted(CHUNKED, CHUNKED, body=chunked(GOOD)), "501 unsupported_encoding"),
    ("two codings", posted(CHUNKED, "Transfer-Encoding: x", body=chunked(GOOD)), "501 unsupported_encoding"),
    (
        "a tab before the coding",
        posted("Transfer-Encoding:\x0bchunked", body=chunked(GOOD)),
        "400 invalid_request",
    ),
    (
        "a space before the colon",
        posted("Transfer-Encoding : chunked", body=chunked(GOOD)),
        "400 invalid_request",
    ),
    ("a coding in capitals", posted("TRANSFER-ENCODING: CHUNKED", body=chunked(GOOD)), "200"),
    ("a size that is not a number", posted(CHUNKED, body=b"zz\r\n" + GOOD), "400 invalid_request"),
    ("a size beyond 64 bits", posted(CHUNKED, body=b"f" * 18 + b"\r\n" + GOOD), "400 invalid_request"),
    ("a chunk's extension", posted(CHUNKED, body=chunked(GOOD).replace(b"\r\n", b";a=b\r\n", 1)), "200"),
    (
        "chunks by line feeds",
        posted(CHUNKED, body=b"%x\n%s\n0\n\n" % (len(GOOD), GOOD)),
        "400 invalid_request",
    ),
    (
        "a chunk longer than it says",
        posted(CHUNKED, body=b"%x\r\n%sXX0\r\n\r\n" % (len(GOOD), GOOD)),
        "400 invalid_request",
    ),
    ("chunks of garbage", posted(CHUNKED, body=chunked(b'{"mod', b'el":')), "400 invalid_json"),
    ("good chunks", posted(CHUNKED, body=chunked(GOOD[:9], GOOD[9:])), "200"),
    ("trailers", posted(CHUNKED, body=chunked(GOOD, last=TRAILERS)), "200"),
    ("more than the length", posted(LENGTH, body=GOOD + SMUGGLED), "200"),
    ("no length", posted(body=GOOD), "400 missing_body"),
    ("expects 100", posted(LENGTH, "Expect: 100-continue"), "200"),
    ("expects tea", posted(LENGTH, "Expect: tea"), "200"),
    ("HTTP/1.0", request(line="POST /v1/chat/completions HTTP/1.0"), "426 unsupported_protocol"),
    (
        "HTTP/1.0 in chunks",
        message("POST / HTTP/1.0", CHUNKED, body=chunked(GOOD)),
        "426 unsupported_protocol",
    ),
    ("HTTP/0.9", b"GET /v1/models\r\n\r\n", "426 unsupported_protocol"),
    ("HTTP/1.2", request(line="POST /v1/chat/completions HTTP/1.2"), "426 unsupported_protocol"),
    ("HTTP/2.0", request(line="POST /v1/chat/completions HTTP/2.0"), "426 unsupported_protocol"),
    ("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"x" * 100, "400 invalid_request"),
]
FLOOD: Final = [f"x-{number}: y" for number in range(200)]
HEADERS: Final[list[Case]] = [
    ("a folded header", posted(LENGTH, "X-A: b\r\n c"), "200"),
    ("a folded coding", posted("Transfer-Encoding:\r\n chunked", body=chunked(GOOD)), "200"),
    ("line feeds alone", request().replace(b"\r\n", b"\n"), "200"),
    ("a carriage return", posted(LENGTH, "X-A: b\rX-B: c"), "200"),
    ("NUL in a header", posted(LENGTH, "X-A: b\x00c"), "400 invalid_request"),
    ("no colon", posted(LENGTH, "hello"), "400 invalid_request"),
    ("no name", posted(LENGTH, ": x"), "400 invalid_request"),
    ("bytes that are no text", posted(LENGTH, "X-A: \xff\xfe"), "200"),
    ("200 headers", posted(LENGTH, *FLOOD), "431 headers_too_large"),
    ("80 kB of headers", posted(LENGTH, *(f"{x}{'y' * 1000}" for x in FLOOD[:80])), "431 headers_too_large"),
    ("a header of 100 kB", posted(LENGTH, f"X-A: {'y' * 100_000}"), "431 headers_too_large"),
    ("a target of 100 kB", path(f"/v1/chat/completions?{'a' * 100_000}"), "431 headers_too_large"),
    ("no host", message(LINE, LENGTH, host=""), "400 invalid_request"),
    ("two hosts", posted(LENGTH, "Host: other"), "400 ambiguous_header"),
    ("an invalid host", message(LINE, LENGTH, host="Host: a b"), "400 invalid_request"),
    ("named by Connection", posted(LENGTH, "Connection: x-request-id, x-gw-peer, content-length"), "200"),
    ("a key named by Connection", posted(LENGTH, "Connection: authorization"), "401 invalid_api_key"),
    ("the host named by Connection", posted(LENGTH, "Connection: host"), "400 invalid_request"),
    ("low lines", posted(LENGTH, "x_gw_cluster: evil"), "200"),
    ("no key", request().replace(KEY.encode(), b"X-A: b"), "401 invalid_api_key"),
    ("another key", request().replace(TOKEN.encode(), OTHER_TOKEN.encode()), "401 invalid_api_key"),
    ("two keys", posted(LENGTH, f"Authorization: Bearer {OTHER_TOKEN}"), "401 invalid_api_key"),
    ("a key and another", posted(LENGTH, f"x-api-key: {OTHER_TOKEN}"), "401 invalid_api_key"),
    (
        "two types",
        request(GOOD, "Content-Type: text/plain", "Content-Type: application/json"),
        "400 unsupported_type",
    ),
    ("plain text", request(GOOD, "Content-Type: text/plain"), "400 unsupported_type"),
    ("a form", request(GOOD, "Content-Type: application/x-www-form-urlencoded"), "400 unsupported_type"),
    ("parts", request(GOOD, "Content-Type: multipart/form-data; boundary=x"), "400 unsupported_type"),
    ("UTF-16", request(GOOD, "Content-Type: application/json; charset=utf-16"), "400 unsupported_type"),
    ("gzip", request(gzip.compress(GOOD), "Content-Encoding: gzip"), "400 unsupported_encoding"),
    ("gzip, unsaid", request(gzip.compress(GOOD)), "400 invalid_utf8"),
]
WEBSOCKET: Final = ("Upgrade: websocket", "Connection: upgrade", "Sec-WebSocket-Version: 13")
METHODS: Final[list[Case]] = [
    ("GET", message("GET /v1/chat/completions HTTP/1.1", body=b""), "405 method_not_allowed"),
    ("GET with a body", request(line="GET /v1/chat/completions HTTP/1.1"), "405 method_not_allowed"),
    (
        "an override",
        request(GOOD, "X-HTTP-Method-Override: POST", line="GET /v1/chat/completions HTTP/1.1"),
        "405 method_not_allowed",
    ),
    ("PUT", request(line="PUT /v1/chat/completions HTTP/1.1"), "405 method_not_allowed"),
    ("small letters", request(line="post /v1/chat/completions HTTP/1.1"), "400 invalid_request"),
    ("a long method", request(line=f"{'A' * 5000} /v1/chat/completions HTTP/1.1"), "400 invalid_request"),
    ("TRACE", message("TRACE /v1/chat/completions HTTP/1.1", body=b""), "405 method_not_allowed"),
    ("OPTIONS", message("OPTIONS /v1/chat/completions HTTP/1.1", body=b""), "405 method_not_allowed"),
    ("OPTIONS *", message("OPTIONS * HTTP/1.1", body=b""), "404 invalid_request"),
    ("CONNECT", message("CONNECT 127.0.0.1:80 HTTP/1.1", body=b""), "404 unknown_url"),
    ("WebSocket", message("GET /v1/chat/completions HTTP/1.1", *WEBSOCKET, body=b""), "403 invalid_request"),
    ("WebSocket by POST", posted(LENGTH, *WEBSOCKET), "403 invalid_request"),
    (
        "h2c",
        posted(LENGTH, "Upgrade: h2c", "Connection: Upgrade, HTTP2-Settings", "HTTP2-Settings: AAMAAABk"),
        "200",
    ),
]
PATHS: Final[list[Case]] = [
    ("a whole URL", path("http://gateway/v1/chat/completions"), "200"),
    ("a whole URL elsewhere", path("http://169.254.169.254/v1/chat/completions"), "200"),
    ("another service's URL", path("http://169.254.169.254/latest/meta-data"), "404 unknown_url"),
    ("an authority", path("gateway:80"), "400 invalid_request"),
    ("an asterisk", path("*"), "400 invalid_request"),
    ("no slash", path("v1/chat/completions"), "400 invalid_request"),
    ("two slashes", path("//v1/chat/completions"), "200"),
    ("two slashes within", path("/v1//chat/completions"), "200"),
    ("a slash behind", path("/v1/chat/completions/"), "404 unknown_url"),
    ("up and elsewhere", path("/v1/chat/completions/../files"), "404 unknown_url"),
    ("up behind", path("/v1/chat/completions/../"), "404 unknown_url"),
    ("up and back", path("/v1/x/../chat/completions"), "200"),
    ("up, escaped", path("/v1/chat/%2e%2e/%2e%2e/metrics"), "404 unknown_url"),
    ("above the root", path("/../../etc/passwd"), "404 unknown_url"),
    ("a slash, escaped", path("/v1/chat%2Fcompletions"), "404 unknown_url"),
    ("a backslash", path("/v1\\chat\\completions"), "200"),
    ("a backslash, escaped", path("/v1/chat%5Ccompletions"), "404 unknown_url"),
    ("NUL, escaped", path("/v1/chat/completions%00"), "400 invalid_request"),
    ("a letter, escaped", path("/v1/%63hat/completions"), "200"),
    ("a parameter", path("/v1/chat/completions;a=b"), "404 unknown_url"),
    ("capitals", path("/V1/CHAT/COMPLETIONS"), "404 unknown_url"),
    ("a fragment", path("/v1/chat/completions#x"), "400 invalid_request"),
    ("a space", path("/v1/chat/completions /x"), "400 invalid_request"),
    ("no ASCII", path("/v1/chat/completions\u00e9"), "400 invalid_request"),
    ("the upstream's own", path("/metrics"), "404 unknown_url"),
    ("a query", path("/v1/chat/completions?model=other&stream=true"), "200"),
]
JSON: Final[list[Case]] = [
    ("empty", request(b""), "400 missing_body"),
    ("no JSON", request(b"model=chat"), "400 invalid_json"),
    ("a list", request(b"[]"), "400 invalid_type"),
    ("null", request(b"null"), "400 invalid_type"),
    ("two documents", request(GOOD + GOOD), "400 invalid_json"),
    ("two lines", request(GOOD + b"\n" + GOOD), "400 invalid_json"),
    ("NUL behind", request(GOOD + b"\0"), "400 invalid_json"),
    ("a byte order mark", request(b"\xef\xbb\xbf" + GOOD), "400 invalid_json"),
    ("UTF-16, unsaid", request(GOOD.decode().encode("utf-16")), "400 invalid_utf8"),
    ("bad UTF-8", request(GOOD[:-1] + b',"x":"\xff"}'), "400 invalid_utf8"),
    ("overlong UTF-8", request(GOOD[:-1] + b',"x":"\xc0\xaf"}'), "400 invalid_utf8"),
    ("half a pair", added('"x":"\\ud800"'), "400 invalid_json"),
    ("a control character", added('"x":"a\nb"'), "400 invalid_json"),
    ("a comment", added('"x":1/*x*/'), "400 invalid_json"),
    ("a comma behind", added(""), "400 invalid_json"),
    ("apostrophes", request(b"{'model':'chat'}"), "400 invalid_json"),
    ("NaN", added('"temperature":NaN'), "400 invalid_json"),
    ("Infinity", added('"temperature":-Infinity'), "400 invalid_json"),
    ("NaN within", added('"x":[{"y":NaN}]'), "400 invalid_json"),
    ("deep", added('"x":' + "[" * 50_000 + "]" * 50_000), "400 nested_too_deeply"),
    ("65 deep", added('"x":' + "[" * 65 + "]" * 65), "400 nested_too_deeply"),
    ("huge", added(f'"x":"{"y" * 2_000_000}"'), "413 request_too_large"),
    ("300 keys", added(",".join(f'"k{number}":1' for number in range(300))), "400 too_many_keys"),
    ("model twice", added('"model":"other"'), "400 duplicate_key"),
    ("model twice, escaped", added('"mod\\u0065l":"other"'), "400 duplicate_key"),
    ("Model", asked(Model="other"), "400 ambiguous_key"),
    ("a long s", added('"\u017ftream":true'), "400 ambiguous_key"),
    ("stream twice", added('"stream":false,"stream":true'), "400 duplicate_key"),
]
VALUES: Final[list[Case]] = [
    *(
        (f"model {each!r:.9}", asked(model=each), "400 invalid_type")
        for each in (1, None, ["chat"], "x" * 999)
    ),
    ("no model", asked(model=""), "400 missing_model"),
    ("another team's model", asked(model="team-b/chat"), "404 model_not_found"),
    ("model with a path", asked(model="../team-b/chat"), "404 model_not_found"),
    ("model and NUL", asked(model="chat\0"), "404 model_not_found"),
    *(
        (f"max_tokens {each!r}", asked(max_tokens=each), "400 invalid_type")
        for each in (-1, 10**30, 2**31, 1.5)
    ),
    *((f"max_tokens {each!r}", asked(max_tokens=each), "400 invalid_type") for each in ("5", True, [5])),
    ("max_tokens 9000", asked(max_tokens=9000), "400 max_tokens_above_ceiling"),
    *((f"n {each!r}", asked(n=each), "400 invalid_type") for each in (1000, 0, -1, "2", 1.5)),
    *((f"stream {each!r}", asked(stream=each), "400 invalid_type") for each in ("true", 1, [])),
    ("options in a list", asked(stream=True, stream_options=[]), "400 invalid_type"),
    ("options as text", asked(stream=True, stream_options={"include_usage": "no"}), "400 invalid_type"),
]
CASES: Final = [*FRAMING, *HEADERS, *METHODS, *PATHS, *JSON, *VALUES]
