"""The money: each call that was answered is charged once, at a price that was in force; nothing else is."""

import re
import time
from collections import Counter, defaultdict
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

from sqlalchemy import NullPool, create_engine, text

from tests.tools.soak.facts import Seen
from tests.tools.soak.specs import HARD
from tests.tools.soak.world import Call, JSONObject, World

LATE_SECONDS = 90.0
"""A change of prices may take this long to reach the ledger while processes are down."""
ENVOY_LOSES_SECONDS = 0.5
"""Calls that end so shortly before an Envoy is killed may be lost with what it had not written yet."""


class Books:
    """The ledger's tables as they are when nothing moves."""

    def __init__(self, world: World, url: str) -> None:
        self.world = world
        self._engine = create_engine(url, poolclass=NullPool)
        self.faults: list[str] = []
        self._known: dict[int, Any] = {}
        self._read_at = 0.0

    def rows(self, statement: str) -> list[Any]:
        with self._engine.connect() as connection:
            return list(connection.execute(text(statement)).mappings())

    def judge(self, seen: Seen) -> list[str]:
        self.faults = []
        events = self.rows("SELECT * FROM usage_events")
        self._calls(events)
        self._pending(events)
        self._topups(seen)
        self._sums(seen, events)
        self._hard()
        return self.faults

    # -- calls --------------------------------------------------------------------------------------------

    def _calls(self, events: list[Any]) -> None:
        by_request: dict[str, list[Any]] = defaultdict(list)
        for event in events:
            by_request[event["request_id"]].append(event)
        known = {call.request_id for call in self.world.calls}
        for call in self.world.calls:
            found = by_request.get(call.request_id, []) if call.request_id else []
            what = (
                f"call {call.request_id} of {call.service} by {call.key} at {call.began:.1f}: {call.status} "
            )
            if call.status == 200:
                self._served(what, call, found)
            elif found:
                self.faults.append(f"{what}{call.said} was refused and metered: {dict(found[0])}")
        stray = [event for event in events if event["request_id"] not in known]
        unheard = [call for call in self.world.calls if call.status == 0]
        if len(stray) > len(unheard):
            self.faults.append(f"{len(stray)} events of calls that nobody made; {len(unheard)} had no answer")

    def _served(self, what: str, call: Call, found: list[Any]) -> None:
        if len(found) > 1:
            self.faults.append(f"{what}is metered {len(found)} times")
        if not found:
            self._unmetered(what, call)
            return
        event = found[0]
        named = (call.service, call.key.partition("/")[2])
        if (event["service"], event["api_key"]) != named:
            self.faults.append(f"{what}is metered for {event['service']} and key {event['api_key']}")
        self._tokens(what, call, event)
        self._price(what, call, event)

    def _unmetered(self, what: str, call: Call) -> None:
        """What is broken off costs nothing; and what an Envoy had not written when it was killed is lost."""
        if self._envoy_killed(call):
            self.world.count("calls lost with an Envoy")
        elif call.whole or not call.said:
            self.faults.append(
                f"{what}is not metered (whole {call.whole}, {call.pieces} pieces, {call.said})"
            )

    def _tokens(self, what: str, call: Call, event: Any) -> None:
        # A provider tells its usage at the end alone: a call that was left before is charged by an estimate.
        bound = self._bindings().get(event["binding_id"])
        estimated = not call.whole and (bound is None or bound["model"] == "ext")
        if call.usage is not None and call.whole:
            shown = call.usage
            details = shown.get("prompt_tokens_details") or {}
            counted = (shown["prompt_tokens"], details.get("cached_tokens", 0), shown["completion_tokens"])
            metered = (event["input_tokens"], event["cached_input_tokens"], event["output_tokens"])
            if counted != metered:
                self.faults.append(f"{what}reported {counted} to its caller, and metered {metered}")
        elif call.whole and event["output_tokens"] != call.pieces:
            self.faults.append(f"{what}sent {call.pieces} pieces, and metered {event['output_tokens']}")
        elif not call.whole and event["output_tokens"] < call.pieces and not estimated:
            self.faults.append(
                f"{what}sent {call.pieces} pieces before it was left, and metered {dict(event)}"
            )
        if event["input_tokens"] != call.expect_input and not estimated:
            self.faults.append(
                f"{what}has {call.expect_input} tokens of input, and metered {event['input_tokens']}"
            )

    def _envoy_killed(self, call: Call) -> bool:
        name = next(each.name for each in self.world.stack.gateways if each.url == call.gateway)
        return any(
            f"killed {name}-envoy" == said
            and began - ENVOY_LOSES_SECONDS <= call.ended
            and call.began <= ended
            for began, ended, said in self.world.disturbed
        )

    def _price(self, what: str, call: Call, event: Any) -> None:
        """The charge by itself, at each price that may have been in force."""
        if event["charge"] is None:
            return
        binding = self._bindings()[event["binding_id"]]
        late = 3.0 if call.calm else LATE_SECONDS
        candidates = self._prices(binding["model"], call.began - late, call.ended + 1)
        charges = {self._charge(tiers, event) for tiers in candidates}
        wanted = {0} if binding["trial"] else charges
        if event["charge"] not in wanted:
            self.faults.append(f"{what}was charged {event['charge']}, not {sorted(wanted)}: {dict(event)}")

    def _bindings(self) -> dict[int, Any]:
        if self._read_at < time.time() - 2:
            self._known = {row["id"]: row for row in self.rows("SELECT * FROM bindings")}
            self._read_at = time.time()
        return self._known

    def _prices(self, model: str, since: float, until: float) -> list[list[JSONObject]]:
        """What was written in a time, and what was there at its beginning.

        That is the last that was surely taken, and those after it whose answer did not arrive.
        """
        history = self.world.prices.get(model, [])
        before = [index for index, (when, _, certain) in enumerate(history) if when <= since and certain]
        first = before[-1] if before else 0
        return [tiers for when, tiers, _ in history[first:] if when <= until]

    @staticmethod
    def _charge(tiers: list[JSONObject], event: Any) -> int:
        inputs, cached, outputs = event["input_tokens"], event["cached_input_tokens"], event["output_tokens"]
        tier = next(each for each in tiers if each.get("upToInputTokens", inputs) >= inputs)
        fresh = inputs - cached
        for covered, sorts in (
            (event["reservation_input"], "ic"),
            (event["reservation_output"], "o"),
            (event["quota_tokens"], "ico"),
        ):
            for sort in sorts:
                if sort == "i":
                    used = min(covered, fresh)
                    fresh -= used
                elif sort == "c":
                    used = min(covered, cached)
                    cached -= used
                else:
                    used = min(covered, outputs)
                    outputs -= used
                covered -= used
        nano = {name: int(Decimal(tier[name]) * 1000) for name in ("input", "cachedInput", "output")}
        return int(fresh * nano["input"] + cached * nano["cachedInput"] + outputs * nano["output"])

    def _pending(self, events: list[Any]) -> None:
        for event in events:
            if event["transaction_sequence"] is None:
                self.faults.append(f"an event is not charged: {dict(event)}")

    # -- top-ups and sums ---------------------------------------------------------------------------------

    def _topups(self, seen: Seen) -> None:
        booked = {
            (row["key"], row["reference"]): row
            for row in self.rows(
                "SELECT a.key, t.reference, t.kind, t.amount"
                " FROM topups t JOIN accounts a ON a.id = t.account_id"
            )
        }
        asked = set(self.world.topups)
        for (account, reference), row in booked.items():
            amount = Decimal(row["amount"]).scaleb(-9)
            if not any(
                (account, reference, row["kind"]) == each[:3] and Decimal(each[3]) == amount for each in asked
            ):
                self.faults.append(f"{account} has a top-up {reference} of {amount} that nobody asked for")
        for name, raw in seen.topups.items():
            spec, phase = raw["spec"], (raw.get("status") or {}).get("phase")
            account = f"{raw['metadata']['namespace']}/{spec['billingAccountRef']['name']}"
            row = booked.get((account, spec["reference"]))
            if phase is None:
                continue
            same = row is not None and (
                Decimal(row["amount"]).scaleb(-9) == Decimal(spec["amount"]) and row["kind"] == spec["kind"]
            )
            if same != (phase == "Posted"):
                self.faults.append(f"TopUp {name} {spec} is {phase}, but the ledger has {row and dict(row)}")

    def _sums(self, seen: Seen, events: list[Any]) -> None:
        """Balances are what came in less what was used, and all groupings say the same (B19)."""
        bindings = {row["id"]: row for row in self.rows("SELECT * FROM bindings")}
        charged: Counter[str] = Counter()
        calls: Counter[str] = Counter()
        for event in events:
            if event["charge"] is not None:
                account = bindings[event["binding_id"]]["account"]
                charged[account] += event["charge"]
                calls[account] += 1
        expected = self._came_in()
        expected.subtract(charged)
        for account, ledger in seen.balances.items():
            balance = Decimal(ledger["balance"])
            if balance != Decimal(expected[account]).scaleb(-9):
                self.faults.append(
                    f"{account} has {balance}, but {expected[account]} nano-units came and went"
                )
            self._reports(account, Decimal(charged[account]).scaleb(-9), calls[account], balance)

    def _came_in(self) -> Counter[str]:
        """Top-ups less what reservations cost, by account in nano-units."""
        found: Counter[str] = Counter()
        for row in self.rows(
            "SELECT a.key, t.amount FROM topups t JOIN accounts a ON a.id = t.account_id"
            " UNION ALL SELECT r.account, -t.price"
            " FROM reservation_terms t JOIN reservations r ON r.id = t.reservation_id"
        ):
            found[row["key"]] += row["amount"]
        return found

    def _reports(self, account: str, charged: Decimal, calls: int, balance: Decimal) -> None:
        since, until = (f"{datetime.now(UTC) + timedelta(days=days):%Y-%m-%dT00:00:00Z}" for days in (-1, 2))
        for group in ("service", "model", "apiKey", "service,apiKey", "service,model,apiKey"):
            query = f"account={account}&groupBy={group}&from={since}&to={until}&bucket=minute&limit=5000"
            rows = self.world.meter(f"/v1/usage?{query}")["rows"]
            total = sum(Decimal(row["charge"]) for row in rows), sum(row["calls"] for row in rows)
            if total != (charged, calls):
                self.faults.append(
                    f"usage of {account} by {group} is {total}, not {charged} of {calls} calls"
                )
        statement = self.world.meter(f"/v1/accounts/{account}/statement?from={since}")
        total_of_lines = sum(Decimal(line["amount"]) for line in statement["lines"])
        closing = Decimal(statement["closingBalance"])
        if Decimal(statement["openingBalance"]) + total_of_lines != closing or closing != balance:
            self.faults.append(f"the statement of {account} does not add up to its balance")

    def _hard(self) -> None:
        """B17: with enforcement Hard the balance is never below the credit line."""
        balance = 0
        for row in self.rows(
            "SELECT e.amount, t.sequence, t.kind FROM entries e"
            " JOIN books b ON b.id = e.book_id JOIN accounts a ON a.id = b.account_id"
            " JOIN transactions t ON t.sequence = e.transaction_sequence"
            f" WHERE a.key = '{HARD}' AND b.name = 'balance' ORDER BY t.sequence"
        ):
            balance += row["amount"]
            if balance < 0:
                self.faults.append(
                    f"{HARD} fell to {balance} nano-units at {row['sequence']} ({row['kind']})"
                )
                return


SECRET = re.compile(r"fbx_[A-Za-z0-9_-]{20,}|eyJ[A-Za-z0-9_-]{20,}\.[A-Za-z0-9_-]{20,}")
TRACEBACK = re.compile(r"Traceback \(most recent|\"exception\"|Task exception was never|was never awaited")


def logs(directory: Path, read: dict[Path, int]) -> list[str]:
    """Tracebacks and secrets in the logs of Farebox's processes, since the last look."""
    faults = []
    for file in sorted(directory.glob("*.log")):
        said = file.read_text(errors="replace")
        new = said[read.get(file, 0) :]
        read[file] = len(said)
        for pattern, what in ((SECRET, "a secret"), (TRACEBACK, "a traceback")):
            found = pattern.search(new)
            if found:
                around = new[max(0, found.start() - 200) : found.end() + 1500]
                faults.append(f"{file.name} has {what}: {around if what == 'a traceback' else file}")
    return faults
