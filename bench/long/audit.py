"""Three tokenizers of film reviews over documents of React and Vue: `##`, byte-level and morpheme-aware, side by side.

python bench/long/audit.py [--data ../shared/data] [--output bench/out/audit] [--vocab-size 32000]

Every part is a `dure` command, printed as it is started; a second call goes on where the first one ended. About ten
minutes on two CPU cores. Ends with the audit's table, its page (OUTPUT/audit/audit.html), a second audit beside a
tokenizer that was trained on the measured documents themselves (the most that retraining can save), and
bench/out/audit.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[2]
OUT = REPO / "bench/out/audit.json"

# The first is the one that is audited.
KINDS: dict[str, list[str]] = {
    "byte-level": ["kind=byte_level_bpe"],
    "hash-hash": ["kind=hash_hash_bpe"],
    "kiwi": ["kind=byte_level_bpe", "morphemes=kiwi"],
}
# What writers of React and Vue documents say each day and writers of film reviews never.
TERMS = """
컴포넌트|렌더링|리렌더링|서버 컴포넌트|클라이언트 컴포넌트|상태 관리|상태 끌어올리기|반응형|반응형 데이터|가상 DOM|
조건부 렌더링|이벤트 핸들러|이벤트 버블링|의존성 배열|커스텀 Hook|순수 함수|고차 컴포넌트|렌더 함수|
단방향 데이터 흐름|양방향 바인딩|템플릿 참조|계산된 속성|감시자|생명주기 훅|슬롯|지시어|프로퍼티|구조 분해|
콜백 함수|비동기 컴포넌트|하이드레이션|서버 사이드 렌더링|코드 분할|메모이제이션|사이드 이펙트|트랜지션|애니메이션|
포털|컨텍스트|리듀서|디스패치|불변성|스냅샷|배칭|엄격 모드|타입스크립트|자바스크립트|마크업|엘리먼트|React|ReactDOM|
JSX|JavaScript|TypeScript|DOM|HTML|CSS|API|Vue|Vite|Next.js|Node.js|npm|webpack|Babel|ESLint|useState|useEffect|
useRef|useMemo|useCallback|useContext|useReducer|useTransition|useLayoutEffect|useId|createRoot|createContext|
forwardRef|Suspense|StrictMode|Fragment|props|children|setState|className|onClick|onChange|preventDefault|v-if|
v-for|v-model|v-bind|v-on|v-slot|computed|watchEffect|reactive|shallowRef|defineProps|defineEmits|nextTick|
onMounted|KeepAlive|Teleport|Composition API|Options API|script setup|package.json|XMLHttpRequest|addEventListener|
"""


def terms() -> list[str]:
    return [term.strip() for term in TERMS.replace("\n", "").split("|") if term.strip()]


def dure(*words: str) -> float:
    """Seconds of the command."""
    print("\n$ dure " + " ".join(words), flush=True)
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "launch.cli", *words], cwd=REPO, check=True)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=REPO.parent / "shared/data")
    parser.add_argument("--output", type=Path, default=REPO / "bench/out/audit")
    parser.add_argument("--vocab-size", type=int, default=32_000)
    arguments = parser.parse_args()
    data, output = arguments.data.resolve(), arguments.output.resolve()
    reviews, documents = data / "nsmc/nsmc_raw_reviews.jsonl.gz", data / "docs_ko"
    if not (reviews.is_file() and documents.is_dir()):
        print(f"{data}: no nsmc/nsmc_raw_reviews.jsonl.gz or no docs_ko; give --data (skipped)")
        return
    build(reviews, documents, output)
    size = f"vocab_size={arguments.vocab_size}"
    seconds = {name: train(output / "reviews", output / name, [*kind, size]) for name, kind in KINDS.items()}
    train(output / "documents", output / "documents-themselves", ["kind=byte_level_bpe", size])
    listed = output / "terms.txt"
    listed.write_text("\n".join(terms()) + "\n", encoding="utf-8")
    first, *others = (str(output / name) for name in KINDS)
    common = ["tokenizer", "audit", first, "--corpus", str(output / "documents"), "--terms", str(listed)]
    dure(*common, "--against", *others, "--output", str(output / "audit"))
    retrained = str(output / "documents-themselves")
    dure(*common, "--against", retrained, "--output", str(output / "audit-retrained"))
    result = {
        "train_seconds": seconds,
        "tokenizers": figures(output / "audit/audit.json"),
        "beside_one_trained_on_the_documents": figures(output / "audit-retrained/audit.json"),
    }
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"\n{OUT}; the page: {output / 'audit/audit.html'}")


def build(reviews: Path, documents: Path, output: Path) -> None:
    """A corpus of the reviews, to train on, and one of the documents, to measure, by their two sources."""
    output.mkdir(parents=True, exist_ok=True)
    config = output / "reviews.yaml"
    keys = "text_column: review, id_column: review_id, source: nsmc"
    config.write_text(f"inputs:\n  - {{path: {reviews}, {keys}}}\noutput: {output / 'reviews'}\n", encoding="utf-8")
    dure("corpus", "build", str(config))
    files = [str(documents / name) for name in ("react_ko.jsonl", "vue_ko.jsonl")]
    dure("corpus", "build", "--input", *files, "--output", str(output / "documents"))


def train(corpus: Path, output: Path, overrides: list[str]) -> float:
    return dure("tokenizer", "train", "--corpus", str(corpus), "--output", str(output), *overrides)


def figures(path: Path) -> dict[str, Any]:
    """What a page of results names, of each tokenizer."""
    tree = json.loads(path.read_text(encoding="utf-8"))
    return {
        one["name"]: {
            "total": one["total"],
            "sources": {name: its["bytes_per_token"] for name, its in one["sources"].items()},
            "terms": one["terms"],
            "unused_share": one["vocabulary"]["unused_share"],
            "relative": one["relative"],
            "cost": one["cost"],
            "speed": one["speed"],
            "verdict": {key: one["verdict"][key] for key in ("verdict", "rival", "korean", "english")},
        }
        for one in tree["tokenizers"]
    }


if __name__ == "__main__":
    main()
