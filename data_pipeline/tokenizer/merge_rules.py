"""A user's merge rules, `new word → newword`: read, checked, and made steps of the tokenizer's normaliser.

They stand in `tokenizer.json`, so that every library applies them, in the order in which they are written. A decoded
text has the new form. Rules whose outcome would change when a text is encoded, decoded and encoded again are refused.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tokenizers import normalizers

from data_pipeline.stage import StageError
from data_pipeline.tokenizer.encode import Encoder
from data_pipeline.tokenizer.special import SPECIAL_TOKENS, TEMPLATE_MARKERS

ARROWS = ("→", "->")
MAX_RULES = (
    500  # each is a pass over every text: fastokens encodes 37 MB a CPU-second without, 18 with 200, 11 with 500
)
MAX_SHOWN_FAULTS = 20


class Rule(NamedTuple):
    """`old`, wherever it stands in a text, becomes `new`. `where`: its place, for a person."""

    old: str
    new: str
    where: str

    def __str__(self) -> str:
        return f"{self.old!r} → {self.new!r}"


@dataclass(frozen=True)
class MergeRules:
    """Checked rules in their order; none is a choice too."""

    rules: tuple[Rule, ...] = ()

    def normalizer(self) -> normalizers.Normalizer:
        """NFC, then every rule."""
        steps = [normalizers.Replace(rule.old, rule.new) for rule in self.rules]
        return normalizers.Sequence([normalizers.NFC(), *steps]) if steps else normalizers.NFC()

    def normalise(self, text: str) -> str:
        """The text as the normaliser makes it."""
        return replaced(unicodedata.normalize("NFC", text), self.rules)

    def tree(self) -> list[list[str]]:
        """Plain values, for a manifest."""
        return [[rule.old, rule.new] for rule in self.rules]


def read_merge_rules(source: Path | Sequence[str]) -> MergeRules:
    """The rules in a file (UTF-8, one a line, `#` begins a comment) or in a list.

    Raises:
        StageError: no rule, or every faulty one, each on a line of its own.
    """
    if not isinstance(source, Path) and not source:
        return MergeRules()
    rules: list[Rule] = []
    faults: list[str] = []
    for where, line in _lines(source):
        try:
            rules.append(_parsed(line, where))
        except StageError as error:
            faults.append(str(error))
    faults = faults or list(_faults_together(rules))
    if not faults and not rules:
        faults = [f"merge_rules: {source} holds no rule; write one a line (`new word → newword`), or leave the key out"]
    if len(rules) > MAX_RULES:
        faults = [
            f"merge_rules: {len(rules):,} rules, at most {MAX_RULES:,} are taken: each is a pass over every text; "
            "rewrite the corpus instead, or add the words by `dure tokenizer extend`"
        ]
    if faults:
        more = [f"… and {len(faults) - MAX_SHOWN_FAULTS:,} more"] if len(faults) > MAX_SHOWN_FAULTS else []
        raise StageError("\n".join([*faults[:MAX_SHOWN_FAULTS], *more]))
    return MergeRules(tuple(rules))


def replaced(text: str, rules: Sequence[Rule]) -> str:
    """`text` after every rule, one after another."""
    for rule in rules:
        text = text.replace(rule.old, rule.new)
    return text


def measure_rules(encoder: Encoder, texts: Iterable[Sequence[str]], rules: MergeRules) -> dict[str, int]:
    """Of batches of texts: how many the rules change, and how often; how many come back with the new forms alone; and
    how many the rules would change again once they have come back."""
    found = dict.fromkeys(("num_texts", "num_changed", "num_replacements", "num_exact", "num_unstable"), 0)
    for batch in texts:
        decoded = encoder.decode_batch(*encoder.encode_batch(batch))
        for text, back in zip(batch, decoded, strict=True):
            text, changed = unicodedata.normalize("NFC", text), rules.normalise(text)
            found["num_texts"] += 1
            found["num_changed"] += text != changed
            found["num_exact"] += back == changed
            found["num_unstable"] += rules.normalise(changed) != changed
            for rule in rules.rules:
                found["num_replacements"] += text.count(rule.old)
                text = text.replace(rule.old, rule.new)
    return found


def _lines(source: Path | Sequence[str]) -> Iterator[tuple[str, str]]:
    if not isinstance(source, Path):
        yield from ((f"merge_rules.{number}", line) for number, line in enumerate(source))
        return
    try:
        text = source.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise StageError(f"merge_rules: {source}: cannot be read: {error}; give a UTF-8 file of rules") from None
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip() and not line.lstrip().startswith("#"):
            yield f"{source}: line {number}", line


def _parsed(line: str, where: str) -> Rule:
    arrows = [arrow for arrow in ARROWS if arrow in line]
    sides = line.split(arrows[0]) if len(arrows) == 1 else []
    if len(sides) != 2:
        raise StageError(f"{where}: {line.strip()!r} has not exactly one arrow; write `old → new` (or `old -> new`)")
    old, new = (unicodedata.normalize("NFC", side.strip()) for side in sides)
    rule = Rule(old, new, where)
    if (fault := _fault_alone(rule)) is not None:
        raise StageError(f"{where}: {rule}: {fault}")
    return rule


def _fault_alone(rule: Rule) -> str | None:
    if not rule.old or not rule.new:
        return (
            f"the {'old' if not rule.old else 'new'} form is empty; a rule changes words, it neither adds nor deletes"
        )
    if rule.old == rule.new:
        return "both forms are equal in NFC, so nothing would change; take it out"
    for form in (rule.old, rule.new):
        if any(unicodedata.category(character) in ("Cc", "Zl", "Zp") for character in form):
            return f"{form!r} holds a control character or a line break; rules are for words on one line"
        if _joins_its_neighbour(form[0]) or "\u1100" <= form[-1] <= "\u115f":
            return f"{form!r} begins or ends with half a syllable or a combining mark, which NFC joins to its neighbour"
    for token in (*SPECIAL_TOKENS, *TEMPLATE_MARKERS):
        if token in rule.new or token in rule.old:
            return f"it holds the special token or marker {token!r}, which no text may make or change; take it out"
        if rule.old in token:
            return f"{rule.old!r} is a part of the special token or marker {token!r}; make the old form longer"
    return None


def _joins_its_neighbour(character: str) -> bool:
    return unicodedata.category(character).startswith("M") or "\u1160" <= character <= "\u11ff"


def _faults_together(rules: Sequence[Rule]) -> Iterator[str]:
    first: dict[str, Rule] = {}
    for rule in rules:
        if (other := first.setdefault(rule.old, rule)) is not rule:
            what = "the same rule stands" if other.new == rule.new else f"{other} stands"
            yield f"{rule.where}: {rule}: {what} at {other.where} already; keep one"
    if len(first) < len(rules):
        return
    for number, rule in enumerate(rules):
        before = replaced(rule.old, rules[:number])
        if before != rule.old:
            yield (
                f"{rule.where}: {rule}: never applies, an earlier rule makes {before!r} of its old form; "
                "put it before that one"
            )
        elif (after := replaced(rule.new, rules)) != rule.new:
            yield (
                f"{rule.where}: {rule}: its new form is changed again, to {after!r} (a chain or a circle of rules); "
                "write the last form at once"
            )
        elif (found := _first_unstable(rule, rules)) is not None:
            probe, once, twice = found
            yield (
                f"{rule.where}: {rule}: {probe!r} becomes {once!r}, and that {twice!r} when it is encoded again; "
                "put this rule before the one that goes on from it"
            )


def _first_unstable(rule: Rule, rules: Sequence[Rule]) -> tuple[str, str, str] | None:
    """A text that the rules change again when they have changed it, after one pass and after two; None if none is."""
    for probe in _probes(rule, rules):
        once = replaced(probe, rules)
        if (twice := replaced(once, rules)) != once:
            return probe, once, twice
    return None


def _probes(rule: Rule, rules: Sequence[Rule]) -> Iterator[str]:
    """Texts in which what `rule` writes completes the old form of some rule."""
    for other in rules:
        if other is rule:  # a word that ends as it begins may meet itself; the card counts such texts
            continue
        if rule.new in other.old:
            yield other.old.replace(rule.new, rule.old)
        for size in range(1, min(len(rule.new), len(other.old))):
            if rule.new.endswith(other.old[:size]):
                yield rule.old + other.old[size:]
            if rule.new.startswith(other.old[-size:]):
                yield other.old[:-size] + rule.old
