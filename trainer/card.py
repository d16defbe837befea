"""The model card: README.md of an export in Korean and English, made from the run and nothing else.

What the run does not know (the licence, what the model is meant for) stands there as a field to fill in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trainer.card_heads import confusion, head_in, kind_of, labels, quoted, table, tags_of, use_of_head
from trainer.lineage import BaseFacts, DataFacts

Lines = list[str]

# AIHub's terms: whoever derives a work from its data names the agency, and passes the data itself on to nobody.
NIA_KOREAN = (
    "이 모델은 과학기술정보통신부의 재원으로 한국지능정보사회진흥원(NIA)의 지원을 받아 구축된 AI 허브(aihub.or.kr)의 "
    "데이터를 활용하여 학습되었습니다. 데이터 자체는 승인받지 않은 사람에게 제공할 수 없고, 국외 반출은 NIA와의 합의가 "
    "필요합니다."
)
NIA_ENGLISH = (
    "This model was trained on data of AI-Hub (aihub.or.kr), built with the support of the National Information "
    "Society Agency of Korea (한국지능정보사회진흥원, NIA) and funded by the Ministry of Science and ICT. The data "
    "itself may not be passed on to the unapproved, and taking it out of Korea needs an agreement with NIA."
)
NIA_REMINDER = (
    "AI 허브 데이터를 썼다면 한국지능정보사회진흥원(NIA)을 밝혀야 합니다 · where data of AI-Hub was used, "
    "한국지능정보사회진흥원 (NIA) must be credited."
)
FILL_IN = "**채워 주십시오 · fill in**"
UNDECIDED = "undecided"

_WHAT = {
    "full": ("전체 가중치", "all weights"),
    "merged": ("어댑터를 기반 모델에 합친 전체 가중치", "all weights, the adapter merged into its base"),
    "adapter": ("peft 어댑터, 기반 모델이 따로 필요함", "a peft adapter, which needs its base"),
}
_FIGURES = (
    ("loss", "검증 손실 · held-out loss", "{:.4f}"),
    ("bits_per_byte", "바이트당 비트 · bits per byte", "{:.4f}"),
    ("accuracy", "정확도 · accuracy", "{:.2%}"),
    ("margin", "앞선 정도 · margin", "{:.4f}"),
    ("pair_accuracy", "쌍 정확도 · accuracy of pairs", "{:.2%}"),
    ("macro_f1", "매크로 F1 · macro F1", "{:.4f}"),
    ("binary_f1", "F1 (둘째 분류 · second class)", "{:.4f}"),
    ("masked_accuracy", "가린 토큰 정확도 · accuracy of masked tokens", "{:.2%}"),
    ("spearman", "스피어만 상관 · Spearman", "{:.4f}"),
    ("pearson", "피어슨 상관 · Pearson", "{:.4f}"),
    ("recall_at_1", "재현율@1 · recall@1", "{:.2%}"),
    ("recall_at_10", "재현율@10 · recall@10", "{:.2%}"),
    ("mrr", "평균 역순위 · mean reciprocal rank", "{:.4f}"),
    ("triplet_accuracy", "세 글 정확도 · triplet accuracy", "{:.2%}"),
    ("exact_match", "정답 일치율 · exact match", "{:.2%}"),
    ("ended_share", "EOS로 끝난 답 · answers that ended with EOS", "{:.2%}"),
    ("num_documents", "검증 행 · held-out rows", "{:,}"),
    ("num_targets", "검증 목표 · held-out targets", "{:,}"),
)
_STAGES = {
    "pretrain": "사전학습 · pretraining",
    "sft": "지시 튜닝 · instruction tuning",
    "mlm": "빈칸 맞히기 · masked language modelling",
    "classify": "분류 · classification",
    "embed": "문장 임베딩 · sentence embeddings",
    "dpo": "선호 튜닝 · preference tuning (DPO)",
    "orpo": "선호 튜닝 · preference tuning (ORPO)",
    "cpo": "선호 튜닝 · preference tuning (CPO)",
    "kto": "평가 튜닝 · tuning on feedback (KTO)",
    "reward": "보상 · reward",
    "ppo": "강화 학습 · reinforcement learning (PPO)",
    "grpo": "강화 학습 · reinforcement learning (GRPO)",
}


def card(
    facts: Mapping[str, Any],
    *,
    data: Sequence[DataFacts],
    base: BaseFacts | None,
    figures: Mapping[str, Any],
    training: Mapping[str, Any],
) -> str:
    """The card's text.

    Args:
        facts: the export's manifest.
        figures: the last evaluation line of the run up to the exported step; {} if there is none.
        training: names and values of how it was trained, for the table.
    """
    told = [(title, form.format(figures[key])) for key, title, form in _FIGURES if figures.get(key) is not None]
    sections = [
        _front_matter(facts, base),
        _title(facts),
        _use(facts, base),
        table("수치 · Figures", told),
        labels(facts),
        confusion(figures),
        _merge(facts),
        _base(facts, base),
        _data(data),
        table("토크나이저 · Tokenizer", _tokenizer(facts)),
        _template(facts),
        table("학습 · Training", [(name, f"{value}") for name, value in training.items()]),
        _licence(data, base),
    ]
    return "\n\n".join("\n".join(section) for section in sections if section) + "\n"


def _front_matter(facts: Mapping[str, Any], base: BaseFacts | None) -> Lines:
    """What hubs read. `license: other` until somebody decides; a base that has no name there is named below alone."""
    library, task = tags_of(facts)
    return [
        "---",
        "language: ko",
        "license: other",
        f"license_name: {UNDECIDED}",
        *([f"base_model: {quoted(base.name)}"] if base and base.is_loadable else []),
        f"library_name: {library}",
        f"pipeline_tag: {task}",
        "tags: [dure, korean]",
        "---",
    ]


def _title(facts: Mapping[str, Any]) -> Lines:
    korean, english = _WHAT[facts["what"]]
    kind_korean, kind_english = kind_of(facts)
    origin = facts["origin"]
    figures = facts["dtype"] + (f", step {origin['step']:,}" if origin["step"] is not None else "")
    return [
        f"# {origin['name']}",
        "",
        f"dure(두레)로 학습한 {kind_korean}입니다: {korean} ({figures}).",
        "",
        f"{kind_english} trained with dure: {english} ({figures}).",
    ]


def _rows_for_new_tokens(facts: Mapping[str, Any]) -> Lines:
    """What gives a base the rows that an adapter brings."""
    if not (rows := facts.get("new_rows")):
        return []
    return [f"base.resize_token_embeddings({rows['total']}, mean_resizing=False)  # 새 토큰 · new tokens"]


def _use(facts: Mapping[str, Any], base: BaseFacts | None) -> Lines:
    """Code that a reader can copy; the chat template is the tokenizer's own."""
    if head_in(facts) != "causal_lm":
        return [*use_of_head(facts, base), *_packed(facts)]
    lines = ["## 사용 · Use", "", "```python", "from transformers import AutoModelForCausalLM, AutoTokenizer"]
    if facts["what"] == "adapter":
        assert base is not None
        revision = f", revision={quoted(base.revision)}" if base.revision else ""
        source = quoted(base.name) if base.is_loadable else "base_folder"
        lines += [
            "from peft import PeftModel",
            "",
            'folder = "."  # 이 폴더 · this folder',
            *([] if base.is_loadable else ['base_folder = "…"  # 기반 모델의 폴더 · the folder of the base']),
            f"base = AutoModelForCausalLM.from_pretrained({source}{revision})",
            *_rows_for_new_tokens(facts),
            "model = PeftModel.from_pretrained(base, folder)",
        ]
    else:
        lines += ["", 'folder = "."  # 이 폴더 · this folder', "model = AutoModelForCausalLM.from_pretrained(folder)"]
    lines.append("tokenizer = AutoTokenizer.from_pretrained(folder)")
    if facts["template"]:
        lines += [
            'messages = [{"role": "user", "content": "안녕하세요?"}]',
            "inputs = tokenizer.apply_chat_template(",
            '    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True',
            ")",
        ]
    else:
        lines.append('inputs = tokenizer("옛날에", return_tensors="pt", add_special_tokens=False)')
    lines += [
        "ids = model.generate(**inputs, max_new_tokens=128)[0, inputs['input_ids'].shape[1] :]",
        "print(tokenizer.decode(ids, skip_special_tokens=True))",
        "```",
    ]
    return [*lines, *_packed(facts)]


def _packed(facts: Mapping[str, Any]) -> Lines:
    """That the base was held in 4 bits, where it was."""
    quantization = facts.get("quantization")
    if not quantization:
        return []
    double = ", double quantisation" if quantization["double_quantization"] else ""
    whole = ' `llm_int8_skip_modules=["score", "classifier", "pooler.dense"]`' if head_in(facts) == "classifier" else ""
    return [
        "",
        f"기반 모델을 4비트({quantization['kind']}{double})로 두고 학습했습니다. 같은 답을 얻으려면 기반 모델도 "
        f"그렇게 여십시오(`BitsAndBytesConfig`{whole and ',' + whole}).",
        "",
        f"It was trained beside a base held in 4 bits ({quantization['kind']}{double}); open the base so, by "
        f"`BitsAndBytesConfig`{whole and ' with' + whole}, to get what was trained.",
    ]


def _merge(facts: Mapping[str, Any]) -> Lines:
    merge = facts.get("merge")
    if not merge:
        return []
    rows = [
        (f"{title} · {kind}", f"{merge[key]['max_logit_error']:.3g} · {merge[key]['top_1_agreement']:.4%}")
        for key, title, kind in (
            ("float32", "합치기 자체 (fp32)", "the merge itself (fp32)"),
            ("as_written", f"저장된 파일 ({facts['dtype']})", f"the written files ({facts['dtype']})"),
        )
    ]
    title = "합친 모델과 학습한 모델의 차이 · Merged beside what was trained"
    note = f"로짓 최대 차이 · largest logit error, top-1 일치 · agreement ({merge['float32']['num_rows']} 행 · rows)"
    accepted = "한계를 넘었으나 받아들여졌습니다 · beyond the limits, and accepted by hand"
    return [*table(title, rows), "", note, *(["", accepted] if merge["is_accepted"] else [])]


def _base(facts: Mapping[str, Any], base: BaseFacts | None) -> Lines:
    if base is None:
        return []
    revision = f" @ `{base.revision}`" if base.revision else ""
    step = f", step {base.step:,}" if base.step is not None else ""
    sha256 = f", dure sha256 `{base.sha256}`" if base.sha256 else ""
    lines = ["## 기반 모델 · Base", "", f"`{base.name}`{revision}{step}{sha256}"]
    if facts["what"] == "adapter" and not base.is_loadable:
        lines += [
            "",
            "기반 모델이 허브에 없습니다. 받는 사람은 `adapter_config.json`의 `base_model_name_or_path`에 기반 모델의 "
            "폴더나 허브 이름을 적어야 합니다.",
            "",
            "The base has no name on a hub: whoever gets this folder sets `base_model_name_or_path` in "
            "`adapter_config.json` to where the base is.",
        ]
    return [*lines, "", f"기반 모델의 라이선스 · licence of the base: {base.license or FILL_IN}"]


def _tokenizer(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Its figures; of a tokenizer that brings no card.json no more than its size."""
    rows = [("어휘 · vocabulary", f"{facts['vocab_size']:,}"), ("지문 · fingerprint", _short(facts))]
    measured = facts.get("tokenizer")
    if not measured:
        return rows
    sample, training = measured["corpus_sample"], measured["training"]
    return [
        ("종류 · kind", f"{measured['kind']}, {measured['normalizer']}"),
        *rows,
        ("학습한 글 · trained on", f"{training['num_documents']:,} 문서 · documents, {training['num_bytes']:,} bytes"),
        ("토큰당 글자 · characters a token", f"{sample['chars_per_token']:.3f}"),
        ("토큰당 바이트 · bytes a token", f"{sample['bytes_per_token']:.3f}"),
        ("미등록 · unknown", f"{sample['unk_rate']:.3%}"),
    ]


def _short(facts: Mapping[str, Any]) -> str:
    return f"`{facts['tokenizer_fingerprint'][:16]}…`"


def _data(data: Sequence[DataFacts]) -> Lines:
    lines = [
        "## 데이터 · Data",
        "",
        "| 단계 · stage | 출처 · source | 행 · rows | 라이선스 · licence |",
        "|---|---|---|---|",
    ]
    for training in data:
        stage = _STAGES.get(training.stage, training.stage)
        for source, count in training.sources.items():
            named = source.replace("|", "\\|").replace("`", "'").replace("\n", " ")
            lines.append(f"| {stage} | `{named}` | {count:,} | {_licence_of(source)} |")
        if not training.is_known:
            lines.append(f"| {stage} | `{training.shards}` (샤드 없음 · shards not found) | ? | {FILL_IN} |")
    if not data:
        lines.append(f"| {FILL_IN} | | | |")
    if any(training.is_from_aihub for training in data):
        lines += ["", NIA_KOREAN, "", NIA_ENGLISH]
    elif not data or not all(training.is_known for training in data):
        lines += ["", NIA_REMINDER]
    return lines


def _licence_of(source: str) -> str:
    return "AIHub 이용약관 · terms of AIHub" if "aihub" in source.lower() else FILL_IN


def _template(facts: Mapping[str, Any]) -> Lines:
    template = facts["template"]
    if head_in(facts) != "causal_lm":
        return []
    if not template:
        return [
            "## 템플릿 · Template",
            "",
            "없음: 이어 쓰기 모델입니다. · None: it continues texts, and was not taught to answer.",
        ]
    return [
        "## 템플릿 · Template",
        "",
        f"`{template['name']}` (sha256 `{template['sha256'][:16]}…`): `chat_template.jinja`, `template.yaml`. "
        "답은 EOS로 끝납니다. · An answer ends with EOS.",
    ]


def _licence(data: Sequence[DataFacts], base: BaseFacts | None) -> Lines:
    bound = [*(["데이터 · data"] if data else []), *(["기반 모델 · base"] if base else [])]
    return [
        "## 라이선스와 쓰임 · Licence and use",
        "",
        f"- 라이선스 · licence: {FILL_IN} (매이는 곳 · bound by: {', '.join(bound) or '—'}); `license` 위 · above",
        f"- 쓰임 · intended use: {FILL_IN}",
        f"- 한계 · limits: {FILL_IN}. 모델은 틀린 말을 할 수 있습니다 · the model may say what is wrong",
        f"- 연락처 · contact: {FILL_IN}",
    ]
