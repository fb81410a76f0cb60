"""`python -m tests.tools.prose [FILE ...]`: idioms that a reader has to read twice, with file and line.

Farebox is written in plain technical English: one word for one thing, the field's word where there is one.
Each idiom stands here with what to say instead. The default is every tracked file of code, docs and
manifests. Exit status 1 when there is any.
"""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
SUFFIXES = (".py", ".md", ".yaml", ".lua")
INSTEAD = {
    r"told|telling": "reported, received, notified",
    r"tells? of|tells? (?:it|them|whether|which|how|what|that)": "reports, shows, says",
    r"heard|hears?(?! of)": "received, reachable",
    r"(?:no|the|any|is|are|old|have|has) news": "update, change, event",
    r"echoes": "already-known events",
    r"purses?": "spend tracker",
    r"leash(?:ed)?": "parent watchdog",
    r"eyes": "observer, watch",
    r"sheets?": "CSV, table",
    r"(?:a|each|every|this|next|last) pass(?! over)": "a reconcile",
    r"by its word": "as it reports",
    r"(?:is|are|was|were|be|been) away": "unreachable, down",
    r"for ever": "forever, never, without end",
    r"anew": "again",
    r"(?<!as )so long(?! as)": "this long",
    r"so (?:many|much|often)(?! that| as)": "this many, the number of",
    r"whoever": "a caller that, any process that",
    r"of our own": "custom, Farebox's own",
    r"(?:there|it|this|that|which) (?:is|are|was|were) none": "none exists, is missing",
    r"(?:is|are|was|were) none": "none exists, is missing",
    r"what is known of": "the known state of",
    r"looks? (?:at \w+(?: \w+)? )?again": "requeue, check again",
    r"takes? in(?! the| order| turn)": "accepts, reads",
    r"(?:is|are|was|were) asked": "receives a request, is read",
    r"there are no more yet": "no further items",
    r"who has a good key": "a caller with a valid key",
}
ALLOWED = (
    # Phrases, not words: what stands around the idiom makes it plain English.
    "as heard of",
)
_IDIOM = re.compile("|".join(rf"(?P<i{place}>\b(?:{idiom})\b)" for place, idiom in enumerate(INSTEAD)))


def tracked() -> list[Path]:
    """The files that are checked, but for this one."""
    names = subprocess.run(
        ["git", "ls-files", *(f"*{suffix}" for suffix in SUFFIXES)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    paths = (REPOSITORY / name for name in names)
    return [path for path in paths if path.exists() and path != Path(__file__)]


def findings(text: str) -> Iterator[tuple[int, str, str]]:
    """The line, the idiom and what to say instead, for each idiom in a text."""
    instead = list(INSTEAD.values())
    for number, line in enumerate(text.splitlines(), 1):
        # A name is read as words: test_whoever_comes_after. Case counts in code alone: `is None`.
        plain = line.replace("is None", "").replace("_", " ").lower()
        for phrase in ALLOWED:
            plain = plain.replace(phrase, "")
        for found in _IDIOM.finditer(plain):
            assert found.lastgroup is not None
            yield number, found[0], instead[int(found.lastgroup[1:])]


def main(arguments: list[str]) -> int:
    """Print every finding; 1 if there is any."""
    count = 0
    for path in [Path(name).absolute() for name in arguments] or tracked():
        for number, idiom, instead in findings(path.read_text()):
            count += 1
            print(f'{path.relative_to(REPOSITORY)}:{number}: "{idiom}": {instead}')
    if count:
        print(f"{count} idioms: say it in plain words (the list is in tests/tools/prose.py)", file=sys.stderr)
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
