"""Text of every kind, the same in each run: prose, code, numbers, blanks, all scripts, emoji."""
from __future__ import annotations

import gzip
import random
import unicodedata
from functools import cache
from pathlib import Path

import muladd

SENTENCES = (
    "Die Größe der Übung, sagt Björn, sei „maßlos“. ",
    "L'été, c'est déjà l'âge d'or… n'est-ce pas ? ",
    "Я помню чудное мгновенье: передо мной явилась ты. ",
    "吾輩は猫である。名前はまだ無い。",
    "한글은 소리글자이다. ",
    "天地玄黄，宇宙洪荒。日月盈昃，辰宿列张。",
    "في البدء كانت الكلمة، ١٢٣ مرة. ",
    "בראשית ברא אלהים את השמים. ",
    "नमस्ते दुनिया, कैसे हो? ",
    "สวัสดีชาวโลก ",
    "Ἐν ἀρχῇ ἦν ὁ λόγος. ",
    "İstanbul'da ışık var. Tiếng Việt có dấu. ",
    "I'LL they'Ve WE'RE don't it's 'tis O'Neil's ",
    "x=1;y+=2.5e-10*(z**3)//7 1234567890 12 345 6789 ½ ² ৪ ",
    "\U0001f469\u200d\U0001f469\u200d\U0001f467 \U0001f3f3\ufe0f\u200d\U0001f308 "
    "\U0001f1e9\U0001f1ea ☕️ 😀😀😀 ",
    "\t\tif (a[i] != NULL) {\r\n\t\t\treturn;\r\n\t\t}\n\n\n",
    "e\u0301 a\u0308 \ufb01 \u212b \u00a0\u2003\u3000| ",
    "<|im_start|>user\nHi<|im_end|>\n",
    "</s> <s> <unk> [CLS] <0x41> <|eot_id|> ",
    "a" * 40 + "=" * 33 + "-" * 80 + " " * 17,
    "https://example.org/~me/index.html?q=%20a&b=c#d ",
    "CamelCaseWordsAndSNAKE_CASE_words HTTPServerError2x ",
    "\u017fpecial K\u212a '\u017f ",
    "\x00\x01\x7f\x85 ",
)


@cache
def mixed(size: int = 1 << 20, seed: int = 0) -> str:
    """A text of about `size` bytes of UTF-8."""
    chance = random.Random(seed)
    folder = Path(muladd.__file__).parent
    prose = gzip.decompress((folder / "data" / "persuasion.txt.gz").read_bytes()).decode()
    code = (folder / "ir" / "ops.py").read_text() + (folder / "ir" / "sym.py").read_text()
    letters = [chr(c) for c in range(0x20, 0x30000) if unicodedata.category(chr(c))[0] != "C"]
    parts: list[str] = []
    length = 0
    while length < size:
        kind = chance.random()
        if kind < 0.35:
            at = chance.randrange(len(prose) - 2000)
            part = prose[at : at + chance.randrange(2000)]
        elif kind < 0.5:
            at = chance.randrange(len(code) - 1000)
            part = code[at : at + chance.randrange(1000)]
        elif kind < 0.75:
            part = "".join(chance.choices(SENTENCES, k=chance.randrange(1, 6)))
        elif kind < 0.85:
            part = "".join(chance.choices(letters, k=chance.randrange(60)))
        elif kind < 0.93:
            part = chance.choice(" \n\t=-a0.,\r") * chance.randrange(1, 30)
        else:
            part = str(chance.randrange(10 ** chance.randrange(1, 30))) + chance.choice(" ,.")
        parts.append(part)
        length += len(part.encode())
    return "".join(parts)
