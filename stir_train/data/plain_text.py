"""Write an answer's LaTeX, Markdown and Unicode in plain characters, so that one grammar reads it."""

from __future__ import annotations

import re
import unicodedata

_VULGAR = {
    chr(c): unicodedata.normalize("NFKC", chr(c))
    for c in [*range(0xBC, 0xBF), *range(0x2150, 0x215F)]
}
_SUPERSCRIPTS = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-", strict=True))
_MINUS = dict.fromkeys(map(ord, "−–‒﹣－➖‐"), "-")
_SLASHES = {ord("⁄"): "/", ord("∕"): "/"}
_EM_DASH_SIGN = re.compile(r"(?:^|(?<=[(\[$]))—(?=[$.]?[0-9])")
_ARROW_FIRST = re.compile(
    r"^\s*\$?(?:[→⇒➜➔⟶]|\\(?:implies|(?:[Rr]|[Ll]ongr)ightarrow)(?![a-zA-Z]))"
)
_STRUCK_OUT = re.compile(r"~~[^~\n]{1,200}~~|<(s|del|strike)>[^<\n]{0,200}</\1>")
_CURRENCY = "$€£¥₹₽"
_BRACED = r"\{\s*([^{}]{1,80})\s*\}"
_LATEX = (
    (
        re.compile(
            r"\\(?:text(?:bf|it|rm|sf|tt)?|mathrm|mathbf|mathit|mathsf|mathtt|boldsymbol|bm|operatorname"
            r"|mbox|emph|underline|(?:text)?color\s*\{[a-zA-Z]{1,20}\})\s*"
            r"\{([^{}]{0,200})\}"
        ),
        r" \1 ",
    ),
    (re.compile(r"\^\s*\{?\s*\\circ(?![a-zA-Z])\s*\}?|\\degree(?![a-zA-Z])"), "°"),
    (
        re.compile(
            r"\\(?:left|right|displaystyle|textstyle|circ|[lL]arge|LARGE|[hH]uge)(?![a-zA-Z])"
        ),
        " ",
    ),
    (re.compile(r"\{([^{}]{1,80})\\over(?![a-zA-Z])([^{}]{1,80})\}"), r"\\frac{\1}{\2}"),
    (re.compile(r"\\[()\[\]]|\\(?:qquad|quad)(?![a-zA-Z])"), " "),
    (re.compile(r"(?<=[0-9])(?:\\!)?,\\!(?=[0-9]{3}(?![0-9]))"), ""),
    (re.compile(r"(?<=[0-9])(?:\{,\}|\\[,!])(?=[0-9])"), ""),
    (re.compile(r"\\(?:blacksquare|qed|checkmark)(?![a-zA-Z])|\\\\\s*$"), " "),
    (re.compile(r"(?<=[0-9)}])\s?[·⋅∙]\s?(?=[0-9(√\\])"), "×"),
    (re.compile(r"\\[,;!: ]"), " "),
    (re.compile(r"\\([%$#&])"), r"\1"),
    (re.compile(r"\\(?:times|cdot)(?![a-zA-Z])"), "×"),
    (re.compile(r"\\(?:approx|simeq|doteq)(?![a-zA-Z])"), "≈"),
    (re.compile(r"\^\s*\{\s*([^{}]{1,20})\s*\}"), r"^(\1)"),
)
_NESTED = (
    (re.compile(r"(?<=[0-9])(?=\\[dtc]?frac)"), " "),
    (re.compile(rf"\\sqrt\s*(\[[0-9]{{1,2}}\])?\s*{_BRACED}"), r"√\1(\2)"),
    (re.compile(r"\\sqrt\s*(\[[0-9]{1,2}\])?\s*([0-9])(?![0-9])"), r"√\1(\2)"),
    (
        re.compile(rf"\\[dtc]?frac\s*(?:{_BRACED}|([0-9]))\s*(?:{_BRACED}|([0-9]))"),
        r"(\1\2)/(\3\4) ",
    ),
)
MAX_NESTING = 3
"""Fractions and roots within each other, from the inside."""
_BOLD_DIGITS = re.compile(r"(?<=[0-9)])\*\*(?=[0-9(-])")
_EMPHASIS = re.compile(r"(?<![\w)*])([*_])(?=\S)([^*_\n]{1,80})(?<=\S)\1(?![\w*])")
_NARROW_GROUPS = re.compile(r"(?<=[0-9])[\u00a0\u202f\u2009\u2019](?=[0-9]{3}(?![0-9]))")
_DOLLARS_OF = re.compile(
    r"(?<![a-zA-Z])(?:US|AUD?|CAD?|NZD?|HKD?|NT|SGD?|MXN?|R|S)\$(?=\s?[-.]?[0-9])"
)
_BUSINESS_DASH = re.compile(r"(?<=[0-9])/-(?![0-9])")
_SMALL_FRACTION = re.compile("([⁰¹²³⁴⁵⁶⁷⁸⁹]+)[⁄∕/]([₀₁₂₃₄₅₆₇₈₉]+)")
_DOLLARS_CENTS = re.compile(r"([0-9]++) dollars?,? and ([0-9]{1,2}) cents?")


def clean(text: str) -> str:
    """Write LaTeX, Unicode digits, signs and fractions in plain characters; drop invisible ones.

    A fraction becomes ``(a)/(b)``, a root ``√(a)``.
    """
    text = "".join(
        f" {_VULGAR[c]} ".replace("⁄", "/") if c in _VULGAR else c
        for c in text
        if unicodedata.category(c) != "Cf"
    )
    text = _SMALL_FRACTION.sub(
        lambda m: f" {unicodedata.normalize('NFKC', '/'.join(m.groups()))} ", text
    )
    text = re.sub(
        "[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+", lambda m: "^" + "".join(_SUPERSCRIPTS[c] for c in m.group()), text
    )
    text = _NARROW_GROUPS.sub("", _ARROW_FIRST.sub("", text))
    text = unicodedata.normalize("NFKC", text).translate(_MINUS | _SLASHES)
    text = _STRUCK_OUT.sub(" ", _EM_DASH_SIGN.sub("-", text))
    text = "".join(
        str(unicodedata.decimal(c)) if not c.isascii() and c.isdecimal() else c for c in text
    )
    for pattern, replacement in (*_LATEX, *_NESTED * MAX_NESTING):
        text = pattern.sub(replacement, text)
    text = _BOLD_DIGITS.sub("^", text)
    text = re.sub(r"\*\*|__|`|~", " ", text)
    text = _EMPHASIS.sub(r" \2 ", text)
    text = _BUSINESS_DASH.sub("", _DOLLARS_OF.sub(" ", text))
    text = re.sub(rf"(?<=[a-zA-Z])[{_CURRENCY}](?=[-.]?[0-9])", " ", text)
    text = re.sub(rf"[{_CURRENCY}](?=[-.]?[0-9])", "", text)
    text = re.sub(rf"[{_CURRENCY}]", " ", text)
    text = re.sub(r"(?<!\\)[{}]", " ", text)
    return _DOLLARS_CENTS.sub(lambda m: f"{m[1]}.{int(m[2]):02d} dollars", text)
