"""Ask questions about scenes: seven question types, each with its answer drawn first wherever it can be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from data.scenes.draw import COLORS, DIGITS, LETTERS, NOUNS, SHAPES, SIZES, Scene, Thing

OPTIONS = ("(A)", "(B)", "(C)", "(D)")
YES_NO = ("yes", "no")
CORNERS = ("top-left", "top-right", "bottom-left", "bottom-right")
COUNTS = ("1", "2", "3", "4")
ORDINALS = ("first", "second", "third", "fourth")
PLURALS = {noun: "crosses" if noun == "cross" else f"{noun}s" for noun in NOUNS}
FRAMES = (
    *(
        "USER",
        ":",
        "ASSISTANT",
        "Is",
        "there",
        "a",
        "an",
        "How",
        "many",
        "objects",
        "are",
        "What",
        "color",
        "is",
        "the",
    ),
    *(
        "shape",
        "object",
        "size",
        "left",
        "right",
        "of",
        "above",
        "below",
        "Where",
        "letter",
        "digit",
        "shown",
        "word",
        "?",
    ),
)
RELATIONS = {"left of": (0, -1), "right of": (0, 1), "above": (1, -1), "below": (1, 1)}


@dataclass(frozen=True)
class Question:
    """One question, its allowed answers, its answer, and the objects (by position) that it is about.

    Answers are balanced among the stored questions of one `subject`: what the text names, where that hints at them.
    """

    question_type: str
    template: str
    text: str
    choices: tuple[str, ...]
    answer: str
    about: tuple[int, ...]
    subject: str = ""


def pick(rng: np.random.Generator, items: Sequence):
    """Return one of the items, each as often."""
    return items[rng.integers(len(items))]


def singles(values: Sequence[str]) -> list[int]:
    """Return the positions of values that occur once."""
    counts = Counter(values)
    return [i for i, v in enumerate(values) if counts[v] == 1]


def existence(rng: np.random.Generator, scene: Scene) -> Question | None:
    """Ask whether something is there; half the absent ones recombine a colour and a noun that are both present."""
    things = scene.things
    phrases, nouns = [t.phrase for t in things], [t.noun for t in things]
    present = rng.random() < 0.5
    if rng.random() < 1 / 3:
        pool = [n for n in NOUNS if (n in nouns) == present]
        if not pool:
            return None
        target = pick(rng, pool)
        about = [i for i, n in enumerate(nouns) if n == target]
        text, template = target, "noun"
    else:
        if present:
            target = pick(rng, [p for t, p in zip(things, phrases, strict=True) if t.noun in NOUNS])
        else:
            recombined = [f"{t.color} {u.noun}" for t in things for u in things if u.noun in NOUNS]
            anything = [f"{c} {n}" for c in COLORS for n in NOUNS]
            pool = [p for p in (recombined if rng.random() < 0.5 else anything) if p not in phrases]
            if not pool:
                return None
            target = pick(rng, pool)
        about = [i for i, p in enumerate(phrases) if p == target]
        text, template = target, "phrase"
    article = "an" if text[0] in "aeiou" else "a"
    answer = "yes" if present else "no"
    noun = text.split()[-1]
    return Question("existence", template, f"Is there {article} {text}?", YES_NO, answer, tuple(about), noun)


def counting(rng: np.random.Generator, scene: Scene) -> Question | None:
    """Ask how many objects share a colour or a noun; the answer 1 to 4 is drawn first."""
    things = scene.things
    answer = pick(rng, COUNTS)
    by_color = rng.random() < 0.5
    values = [t.color if by_color else t.noun for t in things]
    pool = [v for v, n in Counter(values).items() if str(n) == answer and v in (*COLORS, *NOUNS)]
    if not pool:
        return None
    value = pick(rng, pool)
    text = f"How many {value} objects are there?" if by_color else f"How many {PLURALS[value]} are there?"
    about = tuple(i for i, v in enumerate(values) if v == value)
    return Question("counting", "color" if by_color else "noun", text, COUNTS, answer, about)


def _attribute(
    rng: np.random.Generator, things: Sequence[Thing], kind: str
) -> tuple[str, tuple[str, ...], str, int] | None:
    pools = {
        "color": [i for i in singles([t.noun for t in things]) if things[i].noun in NOUNS],
        "shape": [i for i in singles([t.color for t in things]) if things[i].noun in SHAPES],
        "size": [i for i in singles([t.phrase for t in things]) if things[i].noun in NOUNS],
    }
    if not pools[kind]:
        return None
    i = pick(rng, pools[kind])
    thing = things[i]
    if kind == "color":
        return f"What color is the {thing.noun}?", tuple(COLORS), thing.color, i
    if kind == "shape":
        return f"What shape is the {thing.color} object?", SHAPES, thing.noun, i
    return f"What size is the {thing.phrase}?", tuple(SIZES), thing.size, i


def attribute(rng: np.random.Generator, scene: Scene) -> Question | None:
    """Ask for the colour, shape or size of an object that the question names without doubt."""
    things = scene.things
    kinds = ("color", "shape", "size") if len({t.size for t in things if t.noun in NOUNS}) > 1 else ("color", "shape")
    kind = pick(rng, kinds)
    asked = _attribute(rng, things, kind)
    if asked is None:
        return None
    text, choices, answer, i = asked
    return Question("attribute", kind, text, choices, answer, (i,))


def choice(rng: np.random.Generator, scene: Scene) -> Question | None:
    """Ask for a colour or a shape with four lettered options."""
    things = scene.things
    kind = pick(rng, ("color", "shape"))
    asked = _attribute(rng, things, kind)
    if asked is None:
        return None
    text, pool, answer, i = asked
    options = list(rng.permutation([v for v in pool if v != answer])[:3])
    correct = int(rng.integers(4))
    options.insert(correct, answer)
    listing = " ".join(f"{o} {v}" for o, v in zip(OPTIONS, options, strict=True))
    return Question("choice", kind, f"{text} {listing}", OPTIONS, OPTIONS[correct], (i,))


def _named(things: Sequence[Thing]) -> list[int]:
    return [i for i in singles([t.phrase for t in things]) if things[i].noun in NOUNS]


def relation(rng: np.random.Generator, scene: Scene) -> Question | None:
    """Ask whether one object is left of, right of, above or below another, at least 40 pixels apart on that axis."""
    things = scene.things
    pool = _named(things)
    if len(pool) < 2:
        return None
    i, j = rng.permutation(pool)[:2]
    word = pick(rng, list(RELATIONS))
    axis, sign = RELATIONS[word]
    apart = things[i].center[axis] - things[j].center[axis]
    if abs(apart) < 40:
        return None
    answer = "yes" if apart * sign > 0 else "no"
    text = f"Is the {things[i].phrase} {word} the {things[j].phrase}?"
    return Question("relation", "relation", text, YES_NO, answer, (int(i), int(j)))


def position(rng: np.random.Generator, scene: Scene) -> Question | None:
    """Ask for the quarter of the image in which an object's centre lies, at least 22 pixels from the middle lines."""
    things = scene.things
    middle = scene.side / 2
    pool = [i for i in _named(things) if all(abs(c - middle) >= 22 for c in things[i].center)]
    if not pool:
        return None
    i = int(pick(rng, pool))
    x, y = things[i].center
    answer = CORNERS[2 * (y > middle) + (x > middle)]
    return Question("position", "position", f"Where is the {things[i].phrase}?", CORNERS, answer, (i,))


def reading(rng: np.random.Generator, scene: Scene) -> Question | None:
    """Ask for a printed letter, a handwritten digit, or one letter of a word."""
    things = scene.things
    words = [i for i, t in enumerate(things) if t.noun == "word"]
    if words and rng.random() < 0.6:
        i = words[0]
        k = int(rng.integers(min(len(things[i].text), len(ORDINALS))))
        return Question(
            "reading", "word", f"What is the {ORDINALS[k]} letter of the word?", LETTERS, things[i].text[k], (i,)
        )
    noun, alphabet = pick(rng, (("letter", LETTERS), ("digit", DIGITS)))
    glyphs = [i for i, t in enumerate(things) if t.noun == noun]
    if len(glyphs) == 1 and rng.random() < 0.5:
        i, text = glyphs[0], f"What {noun} is shown?"
    else:
        pool = [i for i in _named(things) if things[i].noun == noun]
        if not pool:
            return None
        i = pick(rng, pool)
        text = f"What is the {things[i].phrase}?"
    return Question("reading", noun, text, alphabet, things[i].text, (i,))


QUESTION_TYPES: dict[str, Callable[[np.random.Generator, Scene], Question | None]] = {
    "existence": existence,
    "counting": counting,
    "attribute": attribute,
    "relation": relation,
    "reading": reading,
    "choice": choice,
    "position": position,
}


def ask(
    rng: np.random.Generator,
    scene: Scene,
    count: int,
    tries: int = 40,
    more_of: Sequence[str] = (),
    types: Sequence[str] = tuple(QUESTION_TYPES),
) -> list[Question]:
    """Ask about `count` questions of the given types about one scene, none twice, and more of the types named."""
    asked: dict[str, Question] = {}
    question_types = [QUESTION_TYPES[name] for name in (*types, *more_of)]
    for turn in range(tries * count):
        if len(asked) == count:
            break
        question = question_types[turn % len(question_types)](rng, scene)
        if question is not None:
            asked.setdefault(question.text, question)
    return list(asked.values())


def vocabulary() -> list[str]:
    """Return every word that a question or an answer can hold, in a fixed order."""
    words = [
        *FRAMES,
        *ORDINALS,
        *NOUNS,
        *PLURALS.values(),
        *COLORS,
        *SIZES,
        *CORNERS,
        *OPTIONS,
        *YES_NO,
        *LETTERS,
        *DIGITS,
    ]
    return list(dict.fromkeys(words))
