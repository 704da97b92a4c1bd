"""Words that were replaced by the field's terms and must not come back: see CONTRIBUTING.md."""

from __future__ import annotations

import re
from pathlib import Path

import re2

from tests.architecture.sources import text_of, tracked, violations

# Each with its replacement.
REPLACED = {
    r"\banew\b": "again, new",
    r"\btold\b": "reported, notified, listed, asked to",
    r"\bwhoever\b": "a caller that, everybody who",
    r"\bone who\b|\bwho waits\b": "a caller that, a waiting task",
    r"(?-i:\bwhat is none\b)|\bis nobody's\b": "anything else, has no owner",
    r"(?<!each of its )(?<!dead )\bletter (?:that|tells|of)\b|[A-Z]\w+Letter\b": "message, report",
    r"\bparcels?\b": "payload",
    r"\bcorrespondence\b": "report inbox",
    r"\boutbox\b": "report sender",
    r"\bdeeds?\b": "action, effect",
    r"\bin bad weather\b": "with faults",
    r"\bby lot\b": "at random, with jitter",
    r"\blet(?:s|ting)? go of\b": "release, close",
    r"\bletterbox": "mailbox",
    r"\bprecedents?\b": "reusable result",
    r"\bculprits?\b": "unpicklable path",
    r"\bmeans nothing\.": "Malformed or invalid",
    r"\bIt is told, or done\b": "what comes back",
    r"\bA token is wanted\b": "Missing or invalid token",
    r"\bnot there any more\b": "no longer exists",
    r"(?<!there )\bis no (?:JSON|pathspec|address|option|datastore)\b": "is not a ...",
    r"\bRunHasOwner\b|\bOwner = tuple\b": "lease holder, attempt key",
    r"\babandoned runs?\b": "orphaned run",
    r"\bbroker cannot\s+tell\b|\bpublisher\.tell\b": "does not say, publish",
    r"\b(?:cannot|to) be had\b|\bis had\b": "is (not) available",
    r"\bone's own\b": "custom, your own",
    r"Whose pages to|\bWhich workers there are\b|\bWho may come in\b": "Open the pages of, List",
    r"\bMark all (?:runs|jobs)\b": "A tag for all",
    r"\bAround[A-Z]\w*|\barounds\b": "StepHook, hooks",
    r"\bcli[./]early\b|\bserver[./]bodies\b": "prefork, request_bodies",
    r"(?-i:\bFollowing\()": "LogTail",
    r"\bnotices? in (?:notices|run\.events)\b|\bnotices: ": "event, events",
    r"\.(?:say|hear|_say|_hear|_tell|_tell_of\w*)\b": "log, send, receive, report",
    r"\blast_words\b|\bWORD_OF_\w+|\bword_(?:name|of_(?:switch|foreach))\b": "last_error, result",
    r"\b(?:session|_line|order|options)\.words\b|\bwords: The arguments\b": "argv, arguments",
    r"--aflow-words\b|\bsaid_by_\w+": "--aflow-argv, output",
    r"\b(?:a|the|warm|its|first) grounds?\b|\bGrounds?\(|_grounds?\b|\bground_": "zygote",
}
# All of them in one pass, which `re` would take for each. It knows no lookbehind: what it finds is
# looked for again with that.
_ANY = re2.compile("(?i)" + "|".join(re.sub(r"\(\?<!.*?\)", "", word) for word in REPLACED))
_THIS = Path("tests/architecture/test_words.py")
_SUFFIXES = (".py", ".md", ".yaml", ".toml", ".sql", ".lua")


def test_words_that_were_replaced_do_not_come_back() -> None:
    def found(path: Path) -> list[str]:
        text = text_of(path)
        if not _ANY.search(text):
            return []
        return [
            f"{word}: write {instead}"
            for word, instead in REPLACED.items()
            if re.search(word, text, re.IGNORECASE)
        ]

    # CONTRIBUTING.md names the words to say what is written instead.
    read = [
        path
        for path in tracked("")
        if path.suffix in _SUFFIXES and path.name not in ("CONTRIBUTING.md", _THIS.name)
    ]
    assert read
    assert {} == violations(read, found)
