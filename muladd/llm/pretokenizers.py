"""How text is cut into words before byte pairs are merged: one row per family of models.

A GGUF file names its rule in `tokenizer.ggml.pre`. A rule is a list of regular expressions (in
Oniguruma's syntax); each cuts what the one before has left whole, into matches and what lies
between them. They are those of the models' own tokenizer.json files.
"""
from __future__ import annotations

from dataclasses import dataclass

_MARKS = r"'s|'t|'re|'ve|'m|'ll|'d"
_ENDINGS = rf"(?i:{_MARKS})"
_SPACES = r"\s+(?!\S)|\s+"
_LINES = r"\s*[\r\n]+"
_UPPER, _LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
_LEAD = r"[^\r\n\p{L}\p{N}]?"


def _alternatives(*parts: str) -> str:
    return "|".join(parts)


def _cased(
    ending: str = "", digits: str = r"\p{N}{1,3}", tail: str = r"[\r\n/]*", but: str = ""
) -> str:
    """Words that begin upper and go on lower, as GPT-4o has them."""
    upper, lower = f"[{_UPPER}{but}]", f"[{_LOWER}{but}]"
    return _alternatives(
        rf"{_LEAD}{upper}*{lower}+{ending}", rf"{_LEAD}{upper}+{lower}*{ending}",
        digits, rf" ?[^\s\p{{L}}\p{{N}}]+{tail}", _LINES, _SPACES,
    )  # fmt: skip


def _modern(digits: str, ending: str = _ENDINGS, word: str = rf"{_LEAD}\p{{L}}+",
            mark: str = r" ?[^\s\p{L}\p{N}]+[\r\n]*", lines: str = _LINES) -> str:  # fmt: skip
    """GPT-4's rule, of which most later ones differ in how many digits stay together."""
    parts = (ending, word, digits, mark, lines, _SPACES)
    return _alternatives(*[p for p in parts if p])


_GPT2 = _alternatives(_MARKS, r" ?\p{L}+", r" ?\p{N}+", r" ?[^\s\p{L}\p{N}]+", _SPACES)
_LLAMA3 = _modern(r"\p{N}{1,3}")
_QWEN2 = _modern(r"\p{N}")
_CASCADE = "|".join(rf"\s{{{n}}}(?!\S)" for n in (512, 256, 128, 64, 32, 16, 8, 4, "1,2")) + r"|\s"
_ASCII_MARKS = r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]"""
_DEEPSEEK3 = _alternatives(
    rf"{_ASCII_MARKS}[A-Za-z]+", r"[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+",
    r" ?[\p{P}\p{S}]+[\r\n]*", _LINES, _SPACES,
)  # fmt: skip
# Letters with case of an early Unicode; in numbers, as some editors change such letters.
_CASED_LETTERS = (
    "41-5A 61-7A B5 C0-D6 D8-F6 F8-1BA 1BC-1BF 1C4-293 295-2AF 370-373 376-377 37B-37D 37F 386 "
    "388-38A 38C 38E-3A1 3A3-3F5 3F7-481 48A-52F 531-556 10A0-10C5 13A0-13F5 13F8-13FD "
    "1C90-1CBA 1CBD-1CBF 1D00-1D2B 1D6B-1D77 1D79-1D9A 1E00-1F15 1F18-1F1D 1F20-1F45 1F48-1F4D "
    "1F50-1F57 1F59 1F5B 1F5D 1F5F-1F7D 1F80-1FB4 1FB6-1FBC 1FBE 1FC2-1FC4 1FC6-1FCC 1FD0-1FD3 "
    "1FD6-1FDB 1FE0-1FEC 1FF2-1FF4 1FF6-1FFC 2102 2107 210A-2113 2115 2119-211D 2124 2126 2128 "
    "212A-212D 212F-2134 2139 213C-213F 2145-2149 214E 2183-2184 2C00-2C7B 2C7E-2CE4 2CEB-2CEE "
    "2CF2-2CF3 A640-A66D A680-A69B A722-A76F A771-A787 A78B-A78E AB70-ABBF FB00-FB06 FB13-FB17 "
    "FF21-FF3A FF41-FF5A 10400-1044F 104B0-104D3 104D8-104FB 10C80-10CB2 10CC0-10CF2 "
    "118A0-118DF 1E900-1E943 "
)
_DEEPSEEK_LETTERS = r"\s?[" + "".join(
    "-".join(rf"\x{{{code}}}" for code in span.split("-")) for span in _CASED_LETTERS.split()
) + "]+"  # fmt: skip
_CJK = r"[一-龥぀-ゟ゠-ヿ]+"
_CJK_WIDE = r"[一-龥ࠀ-一가-퟿]+"
_BLOOM = r" ?[^(\s|.,!?…。，、।۔،)]+"


@dataclass(frozen=True)
class Rule:
    """The expressions of a family, and what else goes with its name.

    `whole`: a word that is a token stays one, whatever the merges say. `begin`: a BOS token comes
    first unless the file says otherwise. `plain`: text is not written as GPT-2's 256 letters for
    bytes, but as itself, spaces as U+2581.
    """

    expressions: tuple[str, ...]
    whole: bool = False
    begin: bool = False
    plain: bool = False


def _rows(names: str, *expressions: str, **flags: bool) -> dict[str, Rule]:
    return {name: Rule(expressions, **flags) for name in names.split()}


RULES: dict[str, Rule] = {
    **_rows("gpt-2 phi-2 mpt olmo jais trillion granite-docling gigachat a.x-4.0 mellum exaone4 "
            "modern-bert jina-es jina-de jina-v1-en jina-v2-es jina-v2-de jina-v2-code "
            "roberta-bpe", _GPT2),
    **_rows("smollm starcoder refact command-r codeshell exaone minerva-7b mellum2",
            r"\p{N}", _GPT2),
    **_rows("llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano",
            _LLAMA3, whole=True, begin=True),
    **_rows("dbrx smaug-bpe chatglm-bpe", _LLAMA3),
    **_rows("glm4 glm5", _LLAMA3, whole=True),
    **_rows("qwen2 deepseek-r1-qwen stablelm2 megrez hunyuan solar-open grok-2 kormo f2llmv2",
            _QWEN2),
    **_rows("qwen35", _modern(r"\p{N}", word=r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+",
                              mark=r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*")),
    **_rows("ufakzeka", _modern(r"\p{N}", ending="")),
    **_rows("seed-coder", _modern(r"\p{N}", mark=r" ?[^\s\p{L}\p{N}\r\n]+")),
    **_rows("minicpm5", r"\p{N}{1,3}", _modern(r"\p{N}+"), whole=True),
    **_rows("bailingmoe bailingmoe2 llada-moe",
            _modern(r"\p{N}", ending=r"'(?i:[sdmt]|ll|ve|re)", word=r"[^\r\n\p{L}\p{N}]?+\p{L}+",
                    mark=r" ?[^\s\p{L}\p{N}]++[\r\n]*", lines=r"\s*[\r\n]")),
    **_rows("exaone-moe",
            _modern(r"\p{N}", word=rf"{_LEAD}(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+",
                    mark=r" ?[^\s\p{L}\p{N}]+[\r\n/]?", lines=r"\s*[\r\n]")),
    **_rows("laguna", r"[^\n]+|[\n]+", _QWEN2),
    **_rows("jais-2", _LLAMA3.removesuffix(_SPACES) + _CASCADE),
    **_rows("gpt-4o llama4 kanana2 talkie minimax-m2", _cased(rf"{_ENDINGS}?")),
    **_rows("kimi-k2", _alternatives(
        r"\p{Han}+", _cased(rf"{_ENDINGS}?", tail=r"[\r\n]*", but=r"&&[^\p{Han}]"))),
    **_rows("tekken", _cased(digits=r"\p{N}"), whole=True, begin=True),
    **_rows("tiny_aya cohere2moe", r"\d{1,3}(?=(?:\d{3})*\b)", _cased(rf"{_ENDINGS}?")),
    **_rows("youtu", r"[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|[一-龥぀-ゟ゠-ヿ]+",
            _cased(rf"{_ENDINGS}?", digits=r"\p{N}"), whole=True),
    **_rows("deepseek-llm", r"[\r\n]", _DEEPSEEK_LETTERS, r"\s?[!-/:-~！-／：-～‘-‟　-。]+",
            r"\s+$", _CJK_WIDE, r"\p{N}+"),
    **_rows("deepseek-coder", r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK_WIDE, r"\p{N}"),
    **_rows("deepseek-v3 hunyuan-dense joyai-llm hy_v4", r"\p{N}{1,3}", _CJK, _DEEPSEEK3),
    **_rows("falcon", r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, r"[0-9][0-9][0-9]"),
    **_rows("poro-chat bloom gpt3-finnish", _BLOOM),
    **_rows("viking", _BLOOM, r"\p{N}"),
    **_rows("superbpe", r"\p{N}+", r"(?=(\d{3})+(?!\d))"),
    **_rows("chameleon", r"<sentinel:[0-9]+>", r"(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z",
            r"([\t\n]|    |  )", r"\p{N}", r"[\p{P}!-/:-@\[-`{-~]", _GPT2, begin=True),
    **_rows("gemma4 granite-embed-multi-311m sarvam-moe", r"[^\n]+|[\n]+", plain=True),
    **_rows("default", r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"),
}  # fmt: skip
