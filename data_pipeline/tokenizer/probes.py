"""Texts that tokenizers get wrong: what a new one is measured on, and what two libraries must agree on."""

from __future__ import annotations

import unicodedata

HOSTILE: dict[str, str] = {
    "sentence": "어디에 사느냐고 묻자 강릉이라고 답했다. 3,500원입니다!",
    "jamo": "ㄱㄴㄷ ㅏㅑㅓ ㄳ ㅄ",
    "chat": "ㅋㅋㅋㅋ ㅠㅠ ㅎㅎ; 뭐임?? ㄹㅇㅋㅋ ㆍㆍ",
    "old_hangul": "나랏〮말〯ᄊᆞ미 듀ᇰ귁에 달아 문ᄍᆞᆼ와로 서르 ᄉᆞᄆᆞᆺ디 아니ᄒᆞᆯᄊᆡ",
    "hanja": "大韓民國 憲法 第1條 ① 樂天(낙천) 龘 𠮷野家",
    "rare_syllables": "뷁 쀍 햏 똠방각하 펲시콜라 믜 쌰",
    "emoji": "👨‍👩‍👧‍👦 🇰🇷 👍🏽 ❤️ 🏴󠁧󠁢󠁥󠁮󠁧󠁿 ☺︎",
    "code": "def f(x):\n\tif x != 0:\n\t\treturn {'키': x ** 2}\n\n\n    # 주석  두 칸\r\n",
    "template": "### 질문: 너는 누구니?\n\n### 답변: 저는 두레입니다.<|endoftext|>",
    "chatml": "<|im_start|>user\n안녕<|im_end|>\n<|im_start|>assistant\n",
    "special_tokens": "<|endoftext|><|pad|><|unk|><|mask|><|sep|><|cls|><|reserved_0|>",
    "nfd": unicodedata.normalize("NFD", "한글 분해형 café"),
    "compatibility": "㈜두레 ① Ⅳ ㎏ ﾡ ｶﾞ ﬁ Å",
    "right_to_left": "שלום עולם مرحبا بالعالم \u200fabc\u200e",
    "zero_width": "가\u200b나\u200c다\u200d라\ufeff마\u00ad바\u2060사",
    "control": "a\x00b\x07c\x1b[31md\x7f\x85\u2028e",
    "spaces": "  앞  가운데   뒤\u3000전각\u00a0붙임\t탭 \n 줄 \n\n\n끝   ",
    "numbers": "2024년 12월 31일 1234567890 3.14159 ½ ٣ 一二三 10²",
    "english": "Don't panic — it's the user's, THEY'LL say 'I'd've'.",
    "masks": "#@이름# &name& ▲▲ ○○ <NAME> {laughing} ((xx))",
    "long_word": "가" * 300 + "=" * 300 + "a1" * 100,
    "empty": "",
}

# Alone and run together: a cut between two of them must not depend on what stands around.
PROBES: list[str] = [*HOSTILE.values(), "".join(HOSTILE.values()), " ".join(HOSTILE.values()), "\n".join(HOSTILE)]
