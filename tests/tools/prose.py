"""`python -m tests.tools.prose [FILE ...]`: list idioms that a reader must read twice, with file and line.

Farebox is written in plain technical English: one word for one thing, and the field's word where one exists.
INSTEAD lists each idiom with the words to use instead. Without arguments, all tracked code, docs and
manifests are checked. Exit status 1 if an idiom is found.
"""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
SUFFIXES = (".py", ".md", ".yaml", ".lua")
NAMING_IDIOMS = (Path(__file__), REPOSITORY / "tests/test_prose.py")
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
    r"(?<!as\s)so long(?! as)": "this long",
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
_MIGRATIONS = "operator/farebox/ledger/db/migrations/versions/"
# Released migrations never change, and neither does their text.
ALLOWED = {
    (_MIGRATIONS + "0001_ledger.py", "whoever"),
    (_MIGRATIONS + "0002_quotas_and_reservations.py", "was asked"),
    (_MIGRATIONS + "0003_budgets.py", "anew"),
}
"""The path of a file and the idiom that may stay in it."""
# A space of an idiom is also a line break, with the indent and the comment sign of the next line.
# `findings` checks where a match starts: an expression that starts with \b is six times as slow.
_IDIOMS = [(re.compile(rf"(?:{idiom})\b".replace(" ", r"[ \n#]+")), say) for idiom, say in INSTEAD.items()]


def tracked() -> list[Path]:
    """All tracked files of the suffixes, except the two files that name idioms: the list and its test."""
    names = subprocess.run(
        ["git", "ls-files", *(f"*{suffix}" for suffix in SUFFIXES)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    paths = (REPOSITORY / name for name in names)
    return [path for path in paths if path.exists() and path not in NAMING_IDIOMS]


def findings(text: str) -> Iterator[tuple[int, str, str]]:
    """The line, the idiom and what to say instead, for each idiom in a text."""
    # A name is read as words (test_whoever_comes_after), and None is code, not a word.
    plain = text.replace("None", "NULL").replace("_", " ").lower()
    found = [
        (plain.count("\n", 0, match.start()) + 1, " ".join(re.split(r"[ \n#]+", match[0])), say)
        for idiom, say in _IDIOMS
        for match in idiom.finditer(plain)
        if not plain[match.start() - 1 : match.start()].isalnum()
    ]
    yield from sorted(found)


def check(paths: list[Path]) -> Iterator[str]:
    """A line of the report for each idiom in the files that ALLOWED does not name."""
    for path in paths:
        name = path.relative_to(REPOSITORY).as_posix()
        for number, idiom, say in findings(path.read_text()):
            if (name, idiom) not in ALLOWED:
                yield f'{name}:{number}: "{idiom}": {say}'


def main(arguments: list[str]) -> int:
    """Print every finding; 1 if there is any."""
    found = list(check([Path(name).absolute() for name in arguments] or tracked()))
    for line in found:
        print(line)
    if found:
        print(f"{len(found)} idioms: use plain words (tests/tools/prose.py has the list)", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
