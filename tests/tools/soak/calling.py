"""Callers: whole answers and streams, some left midway, some with wrong keys or foreign models; bursts."""

import base64
import json
import random
import time

import httpx

from farebox.kube.names import core_path
from tests.support.api import path_of
from tests.tools.soak.facts import condition
from tests.tools.soak.specs import MODELS, SERVICES
from tests.tools.soak.world import Call, World

WORDS = ("how", "many", "tokens", "are", "these", "words", "altogether")


class Callers:
    """All callers of a run, who share what keys they know."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.delivered: dict[str, str] = {}
        """Tokens by their keys, as Secrets have them now: those of deleted Secrets nobody knows."""
        self._live: dict[str, str] = {}
        self._serving: dict[str, list[str]] = {}
        self._client = httpx.Client(timeout=httpx.Timeout(20), limits=httpx.Limits(max_connections=32))

    def learn_keys(self, chance: random.Random) -> None:
        """Read Secrets, as pods do. Keys of before are kept: a deleted one opens nothing."""
        status, found = self.world.kube.ask("GET", path_of("APIKey"))
        if status != 200:
            return
        live: dict[str, str] = {}
        delivered: dict[str, str] = {}
        for raw in found["items"]:
            namespace, name = raw["metadata"]["namespace"], raw["metadata"]["name"]
            status, secret = self.world.kube.ask("GET", core_path("secrets", namespace, name))
            if status == 200 and secret.get("type") == "farebox.dev/api-key":
                token = base64.b64decode(secret["data"]["api-key"]).decode()
                self.world.keys[token] = f"{namespace}/{name}"
                delivered[f"{namespace}/{name}"] = token
                if condition(raw, "Ready").get("reason") == "Active":
                    live[token] = f"{namespace}/{name}"
        self._live, self.delivered = live, delivered
        status, found = self.world.kube.ask("GET", path_of("InferenceService"))
        if status == 200:
            serving: dict[str, list[str]] = {}
            for raw in found["items"]:
                if condition(raw, "Serving").get("status") == "True":
                    serving.setdefault(raw["metadata"]["namespace"], []).append(raw["metadata"]["name"])
            self._serving = serving

    def caller(self, chance: random.Random) -> None:
        known = self._live if chance.random() < 0.95 else self.world.keys
        keys = list(known.items())
        if not keys:
            time.sleep(0.5)
            return
        token, key = chance.choice(keys)
        team = key.partition("/")[0]
        model = chance.choice(SERVICES + (("hard",) * 2 if team == "team-2" else ()))
        if self._serving.get(team) and chance.random() < 0.8:
            model = chance.choice(self._serving[team])
        strange = chance.random()
        if strange < 0.03:
            token, key = "fbx_" + "x" * 43, "nobody"
        elif strange < 0.06:
            model = chance.choice(("ghost", "chat/../x", *MODELS))
        for _ in range(chance.choice((1, 1, 1, 1, 6))):
            self.call(chance, token, key, f"{team}/{model}", leave=chance.random() < 0.12)

    def call(
        self,
        chance: random.Random,
        token: str,
        key: str,
        service: str,
        leave: bool = False,
        calm: bool = False,
        gateway: str = "",
    ) -> Call:
        """One call, noted."""
        gateway = gateway or chance.choice(self.world.stack.gateways).url
        words = [chance.choice(WORDS) for _ in range(chance.choice((3, 12, 40)))]
        body = {
            "model": service.partition("/")[2],
            "messages": [{"role": "user", "content": " ".join(words)}],
            "stream": leave or chance.random() < 0.4,
        }
        if chance.random() < 0.8:
            body["max_tokens"] = chance.choice((1, 8, 40))
        if body["stream"] and chance.random() < 0.5:
            body["stream_options"] = {"include_usage": True}
        expected = 3 + sum(-(-len(word) // 4) for word in words)
        call = Call(service, key, gateway, time.time(), expected, bool(body["stream"]), calm)
        try:
            self._send(call, token, body, chance.randrange(1, 10) if leave else 0)
        except (httpx.HTTPError, OSError) as error:
            call.said = f"{type(error).__name__}: {error}"
        call.ended = time.time()
        self.world.calls.append(call)
        self.world.count(f"calls:{call.status}")
        return call

    def _send(self, call: Call, token: str, body: object, leave_after: int) -> None:
        headers = {"Authorization": f"Bearer {token}"}
        url = f"{call.gateway}/v1/chat/completions"
        with self._client.stream("POST", url, json=body, headers=headers) as answer:
            call.status = answer.status_code
            call.request_id = answer.headers.get("x-request-id", "")
            if call.status != 200 or not call.stream:
                text = answer.read()
                call.whole = True
                if call.status == 200:
                    call.usage = json.loads(text)["usage"]
                else:
                    call.said = text.decode(errors="replace")[:300]
                return
            for line in answer.iter_lines():
                if not line.startswith("data: ") or line == "data: [DONE]":
                    call.whole = call.whole or line == "data: [DONE]"
                    continue
                event = json.loads(line[6:])
                if "error" in event:
                    call.said = line[:300]
                    return
                if any((choice.get("delta") or {}).get("content") for choice in event["choices"]):
                    call.pieces += 1
                call.usage = event.get("usage") or call.usage
                if leave_after and call.pieces >= leave_after:
                    return
