#!/usr/bin/python3
"""Writes docs/coverage.md: what ferry carries, what it carries with an option, and what it refuses.

The page is made from the code: a kind is carried when a live test of its room shows it, and a refusal
is the sentence that the program itself says.  So a line can neither promise what nobody tries nor
outlive what it describes.

  coverage.py            compares; exit code 1 if the page is not what the code says
  coverage.py --write    writes the page
"""

import os
import re
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
PAGE = os.path.join(ROOT, "docs", "coverage.md")
STRINGS = r'((?:"(?:[^"\\]|\\.)*"\s*)+)'

HEAD = """# What is carried over

Made from the code by `tests/coverage.py --write`; a test fails when this page and the code differ.

- **Carried**: each line is a live test (`src/state/ROOM/*_live.cc`): a program that holds this state, is
  checkpointed, killed and restored by the built `criu`, on the host, in a pid namespace, and left running, and checks
  itself. What needs an option says which.
- **Refused**: the program's own sentences, with `…` for what it names. A checkpoint says them before it changes
  anything, and a restore takes back what it had made.
"""

LOST = """## What is lost without a word

Written by hand, since no code can say it: the kernel tells none of this, so a checkpoint neither saves nor refuses it.

- Keys of keyrings(7): a restored process has the keyrings that the container runtime gives it.
- Directories watched with `F_NOTIFY` of fcntl(2).
- The node that set_mempolicy_home_node(2) prefers.
"""


def read(path):
    with open(path, encoding="utf-8") as f:
        return f.read()


def sentence(strings):
    """Adjacent C++ string literals as the text that a user sees."""
    text = "".join(re.findall(r'"((?:[^"\\]|\\.)*)"', strings))
    text = text.replace('\\"', '"').replace("\\n", " ").replace("{{", "{").replace("}}", "}")
    return re.sub(r"\s+", " ", re.sub(r"\{[^{}]*\}", "…", text)).strip()


def words(name):
    """KeepsCounterAbove32Bits as "keeps counter above 32 bits"; abbreviations stay."""
    parts = re.findall(r"[A-Z]{2,}(?=[A-Z][a-z]|$|\d)|[A-Z][a-z]*|[a-z]+|\d+", name)
    return " ".join(p if p.isupper() and len(p) > 1 else p.lower() for p in parts)


def live_tests(room):
    """(what is carried, options it takes, refusal that is tried) of every live test of a room."""
    found = []
    for name in sorted(os.listdir(room)):
        if not name.endswith("_live.cc"):
            continue
        text = read(os.path.join(room, name))
        constants = {m.group(1): m.group(2) for m in re.finditer(r"Options\s+(k\w+)\s*\{?=?\s*(.*?);", text, re.DOTALL)}
        for match in re.finditer(r"^LIVE_TEST(_WITH)?\(\s*(\w+),\s*(\w+)(.*?)\)\s*\{$", text, re.DOTALL | re.MULTILINE):
            options = match.group(4)
            for constant, value in constants.items():
                if re.search(rf"\b{constant}\b", options):
                    options += value
            refused = re.search(r"\.refused\s*=\s*" + STRINGS, options)
            flags = sorted(set(re.findall(r"--[a-z-]+", options)))
            found.append((match.group(2), words(match.group(3)), flags, sentence(refused.group(1)) if refused else None))
    return found


def refusals(paths):
    """What these sources refuse, each sentence once, in the order of the code."""
    found = []
    for path in paths:
        for match in re.finditer(r"fail\(\s*(?:ferry::)?Kind::unsupported,\s*" + STRINGS, read(path)):
            text = sentence(match.group(1))
            if text not in found:
                found.append(text)
    return found


def title_of(room):
    """The first sentence of the header that is called like the room."""
    name = os.path.basename(room)
    headers = [f"{name}.h"] + sorted(n for n in os.listdir(room) if n.endswith(".h"))
    for header in headers:
        path = os.path.join(room, header)
        if os.path.exists(path):
            comment = " ".join(line[2:].strip() for line in
                               re.match(r"((?://.*\n)*)", read(path)).group(1).splitlines())
            return re.split(r"(?<=[.:])\s", comment + " ")[0].rstrip(".:")
    return name


def sources(directory):
    return sorted(os.path.join(d, n) for d, _, names in os.walk(directory) for n in names
                  if n.endswith(".cc") and not n.endswith(("_test.cc", "_live.cc", "_fuzz.cc")))


def rooms():
    state = os.path.join(ROOT, "src", "state")
    lines = []
    for name in sorted(os.listdir(state)):
        room = os.path.join(state, name)
        if not os.path.isdir(room):
            continue
        tests, refused = live_tests(room), refusals(sources(room))
        if not tests and not refused:
            continue
        lines += [f"## {name}", "", title_of(room) + ".", ""]
        carried = [t for t in tests if t[3] is None]
        if carried:
            lines += ["Carried:", ""]
            lines += [f"- {suite}: {what}" + (f" (with `{'`, `'.join(flags)}`)" if flags else "")
                      for suite, what, flags, _ in carried]
            lines.append("")
        if refused:
            lines += ["Refused:", ""] + [f"- {text}" for text in refused] + [""]
    return lines


def engine():
    directory = os.path.join(ROOT, "src", "engine")
    preflight = read(os.path.join(directory, "preflight.cc"))
    table = re.search(r"kImpossible\[\] = \{(.*?)\n\};", preflight, re.DOTALL).group(1)
    lines = ["## Whatever the room", "", "Refused before anything is stopped, when a process has one open:", ""]
    lines += [f"- {what} (`{link}`)" for link, what in re.findall(r'\{"([^"]*)", "([^"]*)"\}', table)]
    lines += ["", "Refused by the engine itself:", ""]
    return lines + [f"- {text}" for text in refusals(sources(directory))] + [""]


def options():
    table = read(os.path.join(ROOT, "src", "programs", "criu", "option_table.cc"))
    reasons = dict(re.findall(r'constexpr const char\* (k\w+) =\s*"((?:[^"\\]|\\.)*)";', table))
    lines = ["## Options of criu that are refused", ""]
    for name, why in re.findall(r'refused_(?:flag|plain|value)\("([^"]+)",\s*(k\w+|"(?:[^"\\]|\\.)*")', table):
        lines.append(f"- `--{name}`: {reasons[why] if why in reasons else sentence(why)}")
    return lines + [""]


def page():
    return "\n".join([HEAD.rstrip(), "", *rooms(), *engine(), *options(), LOST]).rstrip() + "\n"


def main():
    text = page()
    if sys.argv[1:] == ["--write"]:
        with open(PAGE, "w", encoding="utf-8") as f:
            f.write(text)
        return 0
    if sys.argv[1:]:
        sys.exit(__doc__)
    if not os.path.exists(PAGE) or read(PAGE) != text:
        print("docs/coverage.md is not what the code says: run tests/coverage.py --write")
        return 1
    return 0


sys.exit(main())
