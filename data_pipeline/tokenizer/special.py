"""The tokens that every tokenizer of this project begins with, at the same ids for ever, and the templates' markers."""

from __future__ import annotations

EOS = "<|endoftext|>"
PAD = "<|pad|>"
UNK = "<|unk|>"
MASK = "<|mask|>"
SEP = "<|sep|>"
CLS = "<|cls|>"

NUM_RESERVED = 32  # for later stages (roles, tools, languages), so that they need no new embedding row

# Ids are positions: 0 to 5, then 6 to 37.
SPECIAL_TOKENS: tuple[str, ...] = (
    *(EOS, PAD, UNK, MASK, SEP, CLS),
    *(f"<|reserved_{number}|>" for number in range(NUM_RESERVED)),
)

# How transformers names them. BOS is EOS, as in GPT-NeoX: nothing adds it, but evaluation harnesses ask for one.
ROLES: dict[str, str] = {
    "bos_token": EOS,
    "eos_token": EOS,
    "pad_token": PAD,
    "unk_token": UNK,
    "mask_token": MASK,
    "sep_token": SEP,
    "cls_token": CLS,
}

# What instruction templates write around a person's words. A `##` tokenizer needs each whole: it drops newlines and
# cuts at every `#`, so that no sequence of its tokens could stand for them.
TEMPLATE_MARKERS: tuple[str, ...] = (
    "### 질문:",
    "### 맥락:",
    "### 답변:",
    "### 명령어:",
    "### 입력:",
    "### 응답:",
    "### Instruction:",
    "### Input:",
    "### Response:",
    "<|im_start|>",
    "<|im_end|>",
)
