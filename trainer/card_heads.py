"""What a model card says of a model that writes no text: its use in a pipeline, its classes, its confusion matrix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trainer.lineage import BaseFacts
from trainer.stages import REWARD_LABELS

Lines = list[str]

# By head: what hubs call its use, and what it is in a sentence.
HEADS = {
    "causal_lm": ("text-generation", "한국어 언어 모델", "A Korean language model"),
    "masked_lm": ("fill-mask", "한국어 인코더(빈칸 맞히기)", "A Korean encoder (masked language model)"),
    "classifier": ("text-classification", "한국어 글 분류 모델", "A classifier of Korean texts"),
    "encoder": ("feature-extraction", "한국어 인코더", "An encoder of Korean texts"),
}
MAX_CLASSES = 20  # of a confusion matrix that a page holds


_REWARD = ("한국어 보상 모델(답에 매기는 점수)", "A Korean reward model, which scores an answer to a prompt,")


def kind_of(facts: Mapping[str, Any]) -> tuple[str, str]:
    """What the model is, in Korean and in English."""
    return _REWARD if is_reward(facts) else HEADS[head_in(facts)][1:]


def is_reward(facts: Mapping[str, Any]) -> bool:
    return head_in(facts) == "classifier" and tuple(facts.get("labels") or ()) == REWARD_LABELS


def tags_of(facts: Mapping[str, Any]) -> tuple[str, str]:
    """(the library that opens the folder, the task) as hubs name them."""
    if facts.get("vectors"):
        return "sentence-transformers", "sentence-similarity"
    return "peft" if facts["what"] == "adapter" else "transformers", HEADS[head_in(facts)][0]


def head_in(facts: Mapping[str, Any]) -> str:
    return str(facts.get("head", "causal_lm"))


_CLASSES = {
    "classifier": "AutoModelForSequenceClassification",
    "masked_lm": "AutoModelForMaskedLM",
    "encoder": "AutoModel",
}


def use_of_head(facts: Mapping[str, Any], base: BaseFacts | None) -> Lines:
    """Code that a reader can copy, for a model that writes no text: a pipeline, whose tokenizer knows the frame."""
    if facts.get("vectors"):
        return _use_of_vectors(facts)
    head = head_in(facts)
    task, kind = HEADS[head][0], _CLASSES[head]
    is_adapter = facts["what"] == "adapter"
    names = f"{kind}, AutoTokenizer, pipeline" if is_adapter else "pipeline"
    lines = ["## 사용 · Use", "", "```python", f"from transformers import {names}"]
    lines += ["from peft import PeftModel"] if is_adapter else []
    lines += ["", 'folder = "."  # 이 폴더 · this folder']
    if is_adapter:
        assert base is not None
        source = quoted(base.name) if base.is_loadable else "base_folder"
        revision = f", revision={quoted(base.revision)}" if base.revision else ""
        classes = f", num_labels={len(facts['labels'])}" if head == "classifier" else ""
        lines += [
            *([] if base.is_loadable else ['base_folder = "…"  # 기반 모델의 폴더 · the folder of the base']),
            f"base = {kind}.from_pretrained({source}{revision}{classes})",
            *([f"base.config.id2label = dict(enumerate({facts['labels']!r}))"] if head == "classifier" else []),
            "tokenizer = AutoTokenizer.from_pretrained(folder)",
            *(["base.config.pad_token_id = tokenizer.pad_token_id"] if head == "classifier" else []),
            "model = PeftModel.from_pretrained(base, folder)",
            f'run = pipeline("{task}", model=model, tokenizer=tokenizer)',
        ]
    else:
        lines.append(f'run = pipeline("{task}", model=folder)')
    texts = {
        "classifier": 'print(run({"text": "앞 문장", "text_pair": "뒤 문장"}))  # 또는 · or run("한 문장")',
        "masked_lm": 'print(run(f"오늘은 {run.tokenizer.mask_token} 날이다."))',
        "encoder": 'print(run("한 문장"))',
    }
    if is_reward(facts):
        asked = "물음과 답을 template.yaml의 틀로, EOS까지 · prompt and answer in the form of template.yaml, with EOS"
        texts[head] = f'text = "…" + run.tokenizer.eos_token  # {asked}\nprint(run(text, function_to_apply="none"))'
    return [*lines, texts[head], "```"]


def _use_of_vectors(facts: Mapping[str, Any]) -> Lines:
    needs = " peft" if facts["what"] == "adapter" else ""
    return [
        "## 사용 · Use",
        "",
        "```python",
        f"from sentence_transformers import SentenceTransformer  # pip install 'sentence-transformers>=6'{needs}",
        "",
        'model = SentenceTransformer(".")  # 이 폴더 · this folder',
        'vectors = model.encode(["전세 대출 서류", "전세 자금 대출에 필요한 서류는 다음과 같습니다."])',
        "print(model.similarity(vectors, vectors))",
        "```",
    ]


def labels(facts: Mapping[str, Any]) -> Lines:
    labels = [] if is_reward(facts) else facts.get("labels") or []
    return table("분류 · Classes", [(str(number), _cell(label)) for number, label in enumerate(labels)])


def confusion(figures: Mapping[str, Any]) -> Lines:
    """Rows: the true class; columns: the predicted one."""
    counts, labels = figures.get("confusion"), [_cell(label) for label in figures.get("labels") or []]
    if not counts or len(labels) > MAX_CLASSES:
        return []
    return [
        "## 혼동 행렬 · Confusion matrix",
        "",
        "행은 참, 열은 예측 · rows: the true class, columns: the predicted one",
        "",
        f"| | {' | '.join(labels)} |",
        f"|---|{'---:|' * len(labels)}",
        *(
            f"| {label} | {' | '.join(f'{count:,}' for count in row)} |"
            for label, row in zip(labels, counts, strict=True)
        ),
    ]


def _cell(text: str) -> str:
    return str(text).replace("|", "\\|").replace("\n", " ")


def table(title: str, rows: Sequence[tuple[str, str]]) -> Lines:
    return [f"## {title}", "", "| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)] if rows else []


def quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
