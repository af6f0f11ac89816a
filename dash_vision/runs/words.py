"""The words of a command line before argparse reads them: all that is unknown in it at once, what that may have been
meant for, and texts that lack their quotes. argparse would tell of the first fault only."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ..files.errors import InputError


@dataclass(frozen=True)
class Foreign:
    """A flag of another trainer, answered instead of called unknown.

    answer: what there is here instead, or why a run does not need it. unneeded: the flag is taken and left out. same:
    values, in lower case, that ask for what is done here anyway, with which it is left out too.
    """

    answer: str
    unneeded: bool = False
    same: tuple[str, ...] = ()


class Flag(NamedTuple):
    """What a flag of ours takes: values of a kind, many of them or one; and whether each is a sentence."""

    kind: type
    many: bool = False
    sentences: bool = False


@dataclass
class _Group:
    """A flag as it was typed and the words behind it; value: what follows its equals sign."""

    typed: str
    value: str | None
    words: list[str]

    @property
    def name(self) -> str:
        return self.typed.lstrip("-")

    @property
    def values(self) -> list[str]:
        return self.words if self.value is None else [self.value, *self.words]

    def typed_words(self) -> list[str]:
        return [self.typed if self.value is None else f"{self.typed}={self.value}", *self.words]


def underscored(words: Sequence[str]) -> list[str]:
    """--max-train-steps=5 -> --max_train_steps=5; values and what is not a flag stay as they are."""
    result = []
    for word in words:
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            word = "--" + name[2:].replace("-", "_") + equals + value
        result.append(word)
    return result


def check_words(
    words: Sequence[str], flags: Mapping[str, Flag], foreign: Mapping[str, Foreign]
) -> tuple[list[str], list[str]]:
    """(the words that are for argparse, sentences on what was left out of them).

    flags, foreign: by name, without hyphens in front. Raises InputError that tells every fault at once.
    """
    strays, groups = _split(words)
    rest: list[str] = []
    notes: list[str] = []
    unknown = list(strays)
    faults: list[str] = []
    for group in groups:
        known, other = flags.get(group.name), foreign.get(group.name)
        if known is not None and group.typed.startswith("--"):
            fault = _misused(group, known)
            faults += [fault] if fault else []
            rest += group.typed_words()
        elif other is not None and (other.unneeded or _is_same(group, other)):
            notes.append(f"{group.typed} is left out: {other.answer}")
        elif other is not None:
            faults.append(f"{group.typed}: {other.answer}")
        else:
            unknown.append(group.typed)
    if unknown:
        faults.append(unknown_settings(unknown, flags))
    if faults:
        raise InputError("; ".join(dict.fromkeys(faults)))
    return rest, notes


def unknown_settings(words: Sequence[str], known: Collection[str]) -> str:
    """A sentence on settings that there are not, with those that they may be meant for."""
    meant = {word: _advice(word, near(word.lstrip("-"), known)) for word in words}
    if len(words) == 1:
        return f"unknown setting {words[0]}; {meant[words[0]] or '--help lists all settings'}"
    listed = ", ".join(f"{word} ({advice})" if advice else word for word, advice in meant.items())
    return f"unknown settings {listed}; --help lists all settings"


def near(name: str, known: Collection[str]) -> list[str]:
    """The settings that a name may be meant for, at most two: misspelt ones, and those that have all of its words and
    more. A digit is never a slip: adam_beta3 is not meant for adam_beta1."""
    words = set(name.split("_"))

    def meant(other: str) -> bool:
        if re.findall(r"\d", name) != re.findall(r"\d", other):
            return False
        return slips(name, other) <= (1 if len(name) < 8 else 2) or (len(words) > 1 and words < set(other.split("_")))

    return sorted(filter(meant, known), key=lambda other: (slips(name, other), other))[:2]


def slips(typed: str, meant: str) -> int:
    """Letters to add, leave out, replace, or exchange with their neighbour, that make one word of the other."""
    before: list[int] = []
    last = list(range(len(meant) + 1))
    for i, letter in enumerate(typed, 1):
        row = [i]
        for j, other in enumerate(meant, 1):
            row.append(min(last[j] + 1, row[-1] + 1, last[j - 1] + (letter != other)))
            if i > 1 and j > 1 and typed[i - 2 : i] == meant[j - 2 : j][::-1]:
                row[j] = min(row[j], before[j - 2] + 1)
        before, last = last, row
    return last[-1]


def _advice(word: str, names: Sequence[str]) -> str:
    flag = "--" if word.startswith("-") else ""
    return f"did you mean {' or '.join(flag + name for name in names)}?" if names else ""


def _split(words: Sequence[str]) -> tuple[list[str], list[_Group]]:
    """(words in front of the first flag, each flag with the words behind it)."""
    strays: list[str] = []
    groups: list[_Group] = []
    for word in words:
        name, equals, value = word.partition("=")
        if re.fullmatch(r"--?[^\W\d]\S*", name):
            groups.append(_Group(name, value if equals else None, []))
        else:
            (groups[-1].words if groups else strays).append(word)
    return strays, groups


def _is_same(group: _Group, foreign: Foreign) -> bool:
    return bool(foreign.same) and " ".join(group.values).lower() in foreign.same


def unquoted(flag: str, prompts: Sequence[str]) -> str | None:
    """A sentence where the prompts behind a flag are the words of one that lacks its quotes."""
    if len(prompts) < 2 or any(" " in prompt for prompt in prompts):
        return None
    return (
        f"{flag} got {len(prompts)} prompts of one word each; put a prompt in quotes: "
        f'{flag} "{" ".join(prompts)}"; prompts that really are single words go into a text file, one a line: '
        f"{flag} prompts.txt"
    )


def _misused(group: _Group, flag: Flag) -> str | None:
    """A sentence where more words follow a flag than it takes, which a text without quotes does."""
    values = group.values
    if flag.sentences and (fault := unquoted(group.typed, values)):
        return fault
    if flag.many or len(values) < 2:
        return None
    if flag.kind is str:
        return f'{group.typed} takes one text, in quotes where it has spaces: {group.typed} "{" ".join(values)}"'
    return f"{group.typed} takes one value, got {' '.join(values)}"
