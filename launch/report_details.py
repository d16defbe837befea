"""The lower half of a report: data, events, configuration, environment."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from launch.report_axes import value_label
from launch.report_data import DataRecord, RunRecord, Tree, as_number
from launch.report_html import Child, Markup, both, card, facts, folded, join, section, table, tag

NUM_EVENTS = 60
MAX_SOURCES = 12
MAX_DETAIL_CHARS = 400
_KINDS = {"byte_level_bpe": "바이트 단위 BPE byte-level BPE", "hash_hash_bpe": "## BPE"}
_RECORDS = {
    "document": "문서 documents",
    "instruction": "질문과 답 instructions",
    "label": "분류한 글 labels",
    "pair": "글 쌍 pairs of texts",
    "preference": "선호 쌍 preferences",
    "feedback": "평가한 답 judged answers",
    "prompt": "프롬프트 prompts",
}
_EVENTS = {
    "attempt": ("", "시도 시작", "attempt"),
    "started": ("good", "학습 시작", "started"),
    "resumed": ("good", "이어서 시작", "resumed"),
    "skipped_step": ("bad", "단계 건너뜀", "skipped step"),
    "damaged_checkpoint": ("bad", "손상된 체크포인트", "damaged checkpoint"),
    "not_pruned": ("bad", "지우지 못함", "not pruned"),
    "failure": ("bad", "실패", "failure"),
    "hang": ("bad", "멈춤(진행 없음)", "hang"),
    "saved": ("good", "저장", "saved"),
    "exit 0": ("good", "끝남", "done"),
    "exit 85": ("", "신호로 멈춤", "stopped"),
}


def data_section(data: DataRecord) -> Markup:
    """A card for each corpus, tokenizer and shards folder."""
    cards = [
        *(_corpus(path, tree) for path, tree in data.corpora),
        *(_shards(path, tree) for path, tree in data.shards),
        *(_tokenizer(path, tree) for path, tree in data.tokenizers),
    ]
    words = "말뭉치와 토크나이저가 이 기계에 없습니다 · no corpus or tokenizer is at hand here"
    shown = tag("div", *cards, cls="columns") if cards else card(tag("p", words, cls="empty"))
    return section("data", "데이터", "Data", shown)


def _corpus(folder: Path, manifest: Tree) -> Markup:
    counts = _tree(manifest.get("counts"))
    dropped, rejected = _counts(counts.get("dropped")), _counts(counts.get("rejected"))
    shares = [
        ("kept", "남김 kept", _int(counts.get("kept"))),
        ("dropped", "버림 dropped", sum(dropped.values())),
        ("rejected", "거부 rejected", sum(rejected.values())),
    ]
    reasons = [("dropped", "버림", name, n) for name, n in dropped.items()]
    reasons += [("rejected", "거부", name, n) for name, n in rejected.items()]
    reasons += [("over", "지나침", name, n) for name, n in _counts(counts.get("passed_over")).items()]
    rows = [[join(_dot(kind), f"{korean} ", tag("code", name)), f"{n:,}"] for kind, korean, name, n in reasons if n]
    unit = _RECORDS.get(str(manifest.get("record")), "records")
    return card(
        tag("h3", both("말뭉치", f"Corpus · {folder.name}")),
        tag("p", f"{shares[0][2]:,} ", tag("small", unit), cls="figure"),
        _share_bar(shares),
        tag("ul", *(tag("li", _dot(kind), f"{name} {n:,}") for kind, name, n in shares), cls="legend"),
        tag("div", table(["이유 reason", "수 count"], rows), cls="stack") if rows else None,
        folded(both("출처와 크기", "Sources and sizes"), _sources(manifest)),
    )


def _share_bar(shares: Sequence[tuple[str, str, int]]) -> Markup:
    total = sum(n for _, _, n in shares) or 1
    parts = (
        tag("i", cls=kind, style=f"flex:{n / total:.6f} 0 0", title=f"{name} {n:,} ({100 * n / total:.2f} %)")
        for kind, name, n in shares
        if n
    )
    return tag("div", *parts, cls="share")


def _dot(kind: str) -> Markup:
    return tag("span", cls=f"dot {kind}")


def _sources(manifest: Tree) -> Markup:
    sources = {name: _tree(its) for name, its in _tree(manifest.get("sources")).items()}
    ordered = sorted(sources.items(), key=lambda item: -_int(item[1].get("num_records")))
    rows = [
        [name or "–", f"{_int(its.get('num_records')):,}", _bytes(its.get("num_text_bytes"))] for name, its in ordered
    ]
    if len(rows) > MAX_SOURCES:
        rest = ordered[MAX_SOURCES - 1 :]
        total = sum(_int(its.get("num_records")) for _, its in rest)
        size = sum(_int(its.get("num_text_bytes")) for _, its in rest)
        rows = [*rows[: MAX_SOURCES - 1], [f"그 밖의 {len(rest):,}곳 others", f"{total:,}", _bytes(size)]]
    head = ["출처 source", "수 records", "텍스트 text"]
    return table(
        head, [*rows, ["합 total", f"{_int(manifest.get('num_records')):,}", _bytes(manifest.get("num_text_bytes"))]]
    )


def _tokenizer(folder: Path, card_tree: Tree) -> Markup:
    sample = _tree(card_tree.get("corpus_sample"))
    training = _tree(card_tree.get("training"))
    hostile = {name: _tree(figures) for name, figures in _tree(card_tree.get("hostile")).items()}
    keys = ("chars_per_token", "bytes_per_token", "unk_rate", "round_trip_rate", "lost_character_rate")
    head = ["글 text", "글자/토큰", "바이트/토큰", "미등록 unknown", "복원 round trip", "손실 lost"]
    rows = [[name, *(_rate(key, figures.get(key)) for key in keys)] for name, figures in hostile.items()]
    kind = str(card_tree.get("kind"))
    return card(
        tag("h3", both("토크나이저", f"Tokenizer · {folder.name}")),
        tag("p", f"{_int(card_tree.get('vocab_size')):,} ", tag("small", "토큰 tokens"), cls="figure"),
        facts(
            [
                (both("방식", "kind"), _KINDS.get(kind, kind)),
                (both("토큰당 글자", "characters a token"), _rate(keys[0], sample.get(keys[0]))),
                (both("토큰당 바이트", "bytes a token"), _rate(keys[1], sample.get(keys[1]))),
                (both("미등록", "unknown"), _rate(keys[2], sample.get(keys[2]))),
                (both("그대로 복원", "round trip"), _rate(keys[3], sample.get(keys[3]))),
                (both("학습 문서", "trained on"), _trained_on(training)),
                (both("지문", "fingerprint"), tag("code", str(card_tree.get("fingerprint"))[:16])),
            ]
        ),
        folded(both("어려운 글에서", "On text that tokenizers get wrong"), table(head, rows)) if rows else None,
    )


def _trained_on(training: Tree) -> str:
    return f"{_int(training.get('num_documents')):,} ({_bytes(training.get('num_bytes'))})"


def _shards(folder: Path, manifest: Tree) -> Markup:
    splits = {name: _tree(counts) for name, counts in _tree(manifest.get("splits")).items()}
    names = {
        "num_documents": "행 rows",
        "num_tokens": "토큰 tokens",
        "num_targets": "배울 토큰 targets",
        "num_bytes": "바이트 bytes",
        "num_unk": "미등록 unknown",
        "num_no_target": "답 없음 no target",
        "num_emptied": "빈 답 emptied",
        "num_equal": "같은 두 답 equal answers",
        "num_no_eos": "EOS 없음 no EOS",
        "num_prompt_too_long": "프롬프트가 너무 김 prompt too long",
        "num_too_long": "너무 김 too long",
    }
    shown = [key for key in names if any(key in counts for counts in splits.values())]
    rows = [[names[key], *(f"{_int(counts.get(key)):,}" for counts in splits.values())] for key in shown]
    template = _tree(manifest.get("template")).get("name")
    return card(
        tag("h3", both("샤드", f"Shards · {folder.name}")),
        table(["", *splits], rows),
        facts([(both("템플릿", "template"), template)]) if template else None,
    )


def events_section(runs: Sequence[RunRecord]) -> Markup:
    """Starts, stops, resumes, refused steps, damaged checkpoints, in the order of time."""
    parts = [_timeline(run, is_alone=len(runs) == 1) for run in runs]
    return section("events", "사건", "Events", tag("div", *parts, cls="stack"))


def _timeline(run: RunRecord, *, is_alone: bool) -> Markup:
    entries = [_attempt_entry(line) for line in run.attempts] + [_event_entry(line) for line in run.events]
    entries += [_exit_entry(run.exit)] if run.exit else []
    entries.sort(key=lambda entry: as_number(entry.get("time")) or 0.0)
    counts = Counter(str(entry["kind"]) for entry in entries)
    chips = [tag("span", join(_event_name(kind), f" {n:,}"), cls="chip") for kind, n in counts.items()]
    # Each save would hide what happened between them; the chip above counts them.
    shown: list[Markup] = [_event(entry) for entry in entries if entry["kind"] != "saved"]
    if len(shown) > NUM_EVENTS:
        half, left_out = NUM_EVENTS // 2, len(shown) - NUM_EVENTS
        words = f"… {left_out:,}개 줄임 · {left_out:,} left out, all are in events.jsonl …"
        shown = [*shown[:half], tag("li", words, cls="gap"), *shown[-half:]]
    return card(
        None if is_alone else tag("h3", run.name),
        tag("div", *chips, cls="chips"),
        tag("ul", *shown, cls="events") if shown else tag("p", "기록이 없습니다 · none", cls="empty"),
    )


def _attempt_entry(line: Tree) -> Tree:
    changed = "; ".join(f"{key}: {_change(values)}" for key, values in _tree(line.get("changes")).items())
    detail = f"랭크 ranks {line.get('ranks', '?')}, {line.get('host', '?')}" + (f"; {changed}" if changed else "")
    return {**line, "kind": "attempt", "detail": detail, "action": ""}


def _change(values: Any) -> str:
    return " → ".join(str(value) for value in values) if isinstance(values, list) else str(values)


def _event_entry(line: Tree) -> Tree:
    kind, detail = str(line.get("kind", "?")), line.get("detail", "")
    if kind == "started" and (as_number(line.get("step")) or 0) > 0:
        kind = "resumed"
    if isinstance(detail, dict):
        rows = detail.get("row_ids")
        detail = {key: value for key, value in detail.items() if key != "row_ids"}
        if set(detail) >= {"reason"}:
            detail = detail["reason"]
        elif detail:
            detail = json.dumps(detail, ensure_ascii=False)
        if isinstance(rows, list):
            listed = ", ".join(str(row) for row in rows[:6])
            detail = f"{detail}; 행 rows {listed}{f', … ({len(rows):,})' if len(rows) > 6 else ''}"
    return {**line, "kind": kind, "detail": detail}


def _exit_entry(record: Tree) -> Tree:
    return {**record, "kind": f"exit {record.get('code')}", "detail": record.get("reason", ""), "action": ""}


def _event(entry: Tree) -> Markup:
    kind, detail = str(entry["kind"]), str(entry.get("detail", ""))
    where = [f"{name} {entry[key]}" for key, name in (("attempt", "시도"), ("rank", "랭크")) if key in entry]
    step = as_number(entry.get("step"))
    where = ([f"{step:,.0f}단계"] if step is not None and step >= 0 else []) + where
    more = f"… (+{len(detail) - MAX_DETAIL_CHARS:,})" if len(detail) > MAX_DETAIL_CHARS else ""
    action = f" → {entry['action']}" if entry.get("action") else ""
    return tag(
        "li",
        tag("time", _clock(entry.get("time"))),
        tag("span", tag("span", _event_name(kind), cls=f"chip {_EVENTS.get(kind, ('bad', '', ''))[0]}".strip())),
        tag("span", detail[:MAX_DETAIL_CHARS], more, action, tag("div", " · ".join(where), cls="where")),
    )


def _event_name(kind: str) -> Child:
    _, korean, english = _EVENTS.get(kind, ("", "", kind))
    return f"{korean} {english}".strip()


def _clock(value: Any) -> str:
    seconds = as_number(value)
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds)) if seconds is not None else ""
    except (ValueError, OverflowError, OSError):
        return ""


def config_section(runs: Sequence[RunRecord]) -> Markup:
    """The resolved tree of each run, as its folder keeps it."""
    parts = [
        tag("details", tag("summary", f"{run.name}: config.yaml"), tag("pre", tag("code", run.config_text)), cls="card")
        for run in runs
    ]
    return section("config", "설정", "Configuration", tag("div", *parts, cls="stack"))


def environment_section(runs: Sequence[RunRecord]) -> Markup:
    """Machine and versions; runs with equal ones share a card."""
    cards: list[Markup] = []
    known: dict[str, list[str]] = {}
    trees: dict[str, Tree] = {}
    for run in runs:
        key = json.dumps(run.environment, sort_keys=True)
        known.setdefault(key, []).append(run.name)
        trees[key] = run.environment
    for key, names in known.items():
        cards += _environment(", ".join(names), trees[key])
    return section("environment", "환경", "Environment", tag("div", *cards, cls="grid"))


def _environment(names: str, tree: Tree) -> list[Markup]:
    if not tree:
        return [card(tag("h3", names), tag("p", "기록이 없습니다 · not recorded", cls="empty"))]
    gpus = tree.get("gpus")
    shown = {"commit": "커밋 commit", "python": "Python", "platform": "플랫폼 platform", "host": "호스트 host"}
    shown |= {"job": "작업 job", "cpu": "CPU", "num_cores": "코어 cores"}
    lines: list[tuple[Child, Child]] = [
        (name, str(tree[key])) for key, name in shown.items() if tree.get(key) is not None
    ]
    lines.append(("GPU", ", ".join(map(str, gpus)) if isinstance(gpus, list) and gpus else "없음 none"))
    packages = _tree(tree.get("packages")).items()
    return [
        card(tag("h3", both("기계", f"Machine · {names}")), facts(lines)),
        card(
            tag("h3", both("패키지", "Packages")),
            facts((tag("code", name), "–" if version is None else str(version)) for name, version in packages),
        ),
    ]


def _tree(value: Any) -> Tree:
    return value if isinstance(value, dict) else {}


def _counts(value: Any) -> dict[str, int]:
    ordered: Iterable[tuple[str, Any]] = sorted(_tree(value).items(), key=lambda item: -_int(item[1]))
    return {str(name): _int(count) for name, count in ordered}


def _int(value: Any) -> int:
    number = as_number(value)
    return int(number) if number is not None and abs(number) < 1e18 else 0


def _rate(key: str, value: Any) -> str:
    number = as_number(value)
    if number is None:
        return "–"
    if key.endswith("_rate"):
        return f"{100 * number:.3f}".rstrip("0").rstrip(".") + " %"
    return value_label(number)


def _bytes(value: Any) -> str:
    number = float(_int(value))
    for unit in ("B", "KB", "MB", "GB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:,.3g} TB"
