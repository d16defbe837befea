"""Keep, extend or retrain: a table of limits, each with its reason, and the figures held against it.

One figure beyond a limit of `retrain` is enough for it; else one beyond a limit of `extend`; else keep. Nothing is
guessed: what a retrained tokenizer would save counts only where one was measured beside (--against).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

Verdict = Literal["keep", "extend", "retrain"]

MAX_TERM_PIECES = 3  # a term of more is broken: a word of Korean with its particle is two to three pieces
EQUAL_SIZE = 1.05  # a vocabulary up to so much larger is of the same size
EQUAL_ROUND_TRIP = 0.01  # of the texts; a tokenizer that gives back fewer is no replacement


@dataclass(frozen=True)
class Limit:
    """A limit of one figure, a share unless it is `chars_per_token`. Beyond it the verdict is `leads_to`."""

    name: str
    limit: float
    is_minimum: bool
    leads_to: Verdict
    korean: str
    english: str
    reason_korean: str
    reason_english: str


LIMITS: tuple[Limit, ...] = (
    Limit(
        "unk_rate", 0.01, False, "retrain",
        "모르는 토큰", "unknown tokens",
        "dure shards build가 이보다 많으면 거부합니다 (max_unk_rate)",
        "dure shards build refuses more (max_unk_rate)",
    ),
    Limit(
        "vocabulary_loss_rate", 0.01, False, "retrain",
        "복원되지 않는 글자", "characters that do not come back",
        "모델이 쓸 수 없는 글자입니다; 토크나이저의 정규화(소문자 등)가 바꾼 것은 빼고 셉니다",
        "the model can never write them; what its own normaliser changes (to lower case) is not counted",
    ),
    Limit(
        "chars_per_token", 1.2, True, "retrain",
        "토큰당 글자", "characters a token",
        "한글 음절은 한 글자, 3바이트입니다: 이보다 적으면 글자와 바이트로 적는 것과 같고, 행에 드는 글이 절반입니다",
        "a Hangul syllable is one character of 3 bytes: below, text is spelled in characters and bytes, and a row "
        "holds half the text",
    ),
    Limit(
        "retrained_saving", 0.15, False, "retrain",
        "같은 크기의 다른 토크나이저가 줄이는 토큰", "tokens saved by another of the same size",
        "학습 비용은 토큰 수에 비례하지만, 다시 학습한 토크나이저는 모델의 임베딩도 새로 학습하게 합니다",
        "training costs as many tokens as there are, but a new tokenizer makes the model learn its embedding anew",
    ),
    Limit(
        "broken_terms", 0.25, False, "extend",
        f"{MAX_TERM_PIECES}조각보다 많이 나뉘는 용어", f"terms of more than {MAX_TERM_PIECES} pieces",
        f"조사까지 붙은 보통 낱말이 2–{MAX_TERM_PIECES}조각입니다",
        f"an ordinary word with its particle is 2 to {MAX_TERM_PIECES} pieces",
    ),
    Limit(
        "term_saving", 0.02, False, "extend",
        "용어가 한 토큰이면 줄어드는 토큰", "tokens saved if each term were one",
        "새 행 몇백 개의 값을 넘는 절약입니다", "it pays for some hundred new rows",
    ),
    Limit(
        "unknown_terms", 0.01, False, "extend",
        "모르는 토큰이 든 용어", "terms with an unknown token",
        "새 토큰만이 적을 수 있는 용어입니다", "only a new token can write them",
    ),
)  # fmt: skip


def judge(one: dict[str, Any], others: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The verdict on one tokenizer of an audit's tree: `checks` (figure, limit, whether it is beyond) and words.

    A check whose figure is None was not made: no terms were given, or none of `others` is of its size.
    """
    rival = _rival(one, others)
    checks = [_check(limit, _figure(limit.name, one, rival)) for limit in LIMITS]
    beyond = [check for check in checks if check["is_beyond"]]
    wanted = {check["leads_to"] for check in beyond}
    verdict: Verdict = "retrain" if "retrain" in wanted else "extend" if wanted else "keep"
    decisive = [check for check in beyond if check["leads_to"] == verdict]
    return {
        "verdict": verdict,
        "rival": rival["name"] if rival else None,
        "checks": checks,
        "korean": _korean(verdict, one, decisive, rival),
        "english": _english(verdict, one, decisive, rival),
    }


def _rival(one: dict[str, Any], others: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Of the measured ones that could stand in its place, the one of the fewest tokens."""
    needed = one["total"]["round_trip_rate"] - EQUAL_ROUND_TRIP
    fit = [
        other
        for other in others
        if other["vocabulary"]["num_rows"] <= EQUAL_SIZE * one["vocabulary"]["num_rows"]
        and other["total"]["round_trip_rate"] >= needed
        and not any(_check(limit, other["total"][limit.name])["is_beyond"] for limit in LIMITS[:2])
    ]
    return min(fit, key=lambda other: other["total"]["num_tokens"], default=None)


def _figure(name: str, one: dict[str, Any], rival: dict[str, Any] | None) -> float | None:
    total, terms = one["total"], one["terms"]
    match name:
        case "retrained_saving":
            saved = None if rival is None else total["num_tokens"] - rival["total"]["num_tokens"]
            return None if saved is None else saved / total["num_tokens"]
        case "broken_terms":
            return terms["broken_share"] if terms else None
        case "term_saving":
            return terms["num_saved"] / total["num_tokens"] if terms else None
        case "unknown_terms":
            return terms["num_unknown"] / terms["num_terms"] if terms else None
    return float(total[name])


def _check(limit: Limit, figure: float | None) -> dict[str, Any]:
    is_beyond = figure is not None and (figure < limit.limit if limit.is_minimum else figure > limit.limit)
    return asdict(limit) | {"figure": figure, "is_beyond": is_beyond}


def figure_words(check: dict[str, Any], *, key: str = "figure") -> str:
    """A check's figure or limit as it is read: 1.93, or 12.3 %."""
    value = check[key]
    if value is None:
        return "–"
    if check["name"] == "chars_per_token":
        return f"{value:.2f}"
    return f"{value:.2%}" if 0 < abs(value) < 0.1 else f"{value:.0%}"


def _korean(
    verdict: Verdict, one: dict[str, Any], decisive: Sequence[dict[str, Any]], rival: dict[str, Any] | None
) -> str:
    found = "; ".join(_one_check(check, check["korean"], "한계", rival) for check in decisive)
    general = f"토큰당 {one['total']['chars_per_token']:.2f}자, 모르는 토큰 {one['total']['unk_rate']:.2%}"
    words = {
        "retrain": f"다시 학습하십시오: {found}.",
        "extend": f"확장하십시오: 일반 글은 괜찮지만({general}) {found}.",
        "keep": f"그대로 쓰십시오: {general}, 한계를 넘은 수치가 없습니다.",
    }
    return words[verdict] + _not_judged(one, rival, "korean")


def _english(
    verdict: Verdict, one: dict[str, Any], decisive: Sequence[dict[str, Any]], rival: dict[str, Any] | None
) -> str:
    found = "; ".join(_one_check(check, check["english"], "limit", rival) for check in decisive)
    general = f"{one['total']['chars_per_token']:.2f} characters a token, {one['total']['unk_rate']:.2%} unknown"
    words = {
        "retrain": f"Retrain: {found}.",
        "extend": f"Extend: general text is fine ({general}), but {found}.",
        "keep": f"Keep: {general}, and no figure is beyond its limit.",
    }
    return words[verdict] + _not_judged(one, rival, "english")


def _one_check(check: dict[str, Any], name: str, limit: str, rival: dict[str, Any] | None) -> str:
    by = f" ({rival['name']})" if rival and check["name"] == "retrained_saving" else ""
    return f"{name}{by} {figure_words(check)} ({limit} {figure_words(check, key='limit')})"


def _not_judged(one: dict[str, Any], rival: dict[str, Any] | None, language: str) -> str:
    """What would have been judged with more input."""
    told = []
    if not one["terms"]:
        told.append(
            {
                "korean": "용어를 주지 않아(--terms) 확장이 이로운지는 보지 않았습니다.",
                "english": "No terms were given (--terms), so whether to extend was not judged.",
            }[language]
        )
    if rival is None:
        told.append(
            {
                "korean": "크기가 같고 바꿔 쓸 만한 것을 함께 재지 않아(--against) 다시 학습의 절약은 보지 않았습니다.",
                "english": "None of its size that could replace it was measured beside it (--against), so what "
                "retraining would save was not judged.",
            }[language]
        )
    return "".join(f" {line}" for line in told)
