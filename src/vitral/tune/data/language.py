"""Which language a text is in, by its script and its commonest words: enough to see a mix, not to judge a line."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

__all__ = ["language_of"]

# The function words that tell these languages apart; counted in the translations of the Universal
# Declaration of Human Rights, where each finds its own (tests/tune/data/test_language.py).
_WORDS = {
    "English": "the and of to in is that for with as are was be this have not or by from which",
    "Portuguese": "o a os as de do da dos das que e em um uma para com não por ao se seu sua mais é são à",
    "Spanish": "el la los las de del que y en un una para con no por al se su es son más lo como a",
    "French": "le la les des et de du un une est dans que pour qui par sur pas au ne avec sont à toute",
    "German": "der die das und ist in zu den mit von nicht ein eine auf für auch sich dem des sind oder hat",
    "Italian": "il lo la gli le di che e è un una per con non del della dei sono in al ogni ha alla",
    "Dutch": "de het een en van is in dat op te voor met zijn niet aan door heeft recht of",
}
_SETS = {name: frozenset(words.split()) for name, words in _WORDS.items()}
_WORD = re.compile(r"[^\W\d_]+")
_FEWEST = 5  # words below which nothing is said


def language_of(text: str) -> str:
    """A language's name, a script's where only the script is known, or "unknown".

    >>> language_of("O direito de todos os que vivem em um lugar é que não se negue a eles"), language_of("!!")
    ('Portuguese', 'unknown')
    """
    words = [word.lower() for word in _WORD.findall(text[:20_000])]
    script = Counter(_script(word[0]) for word in words).most_common(1)
    if not script:
        return "unknown"
    if script[0][0] != "LATIN":
        return f"{script[0][0].capitalize()} script"
    hits = {name: sum(word in known for word in words) for name, known in _SETS.items()}
    best = max(hits, key=hits.__getitem__)
    return best if len(words) >= _FEWEST and hits[best] >= 0.1 * len(words) else "unknown"


def _script(character: str) -> str:
    return unicodedata.name(character, "OTHER").split()[0]
