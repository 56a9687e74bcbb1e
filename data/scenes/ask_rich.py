"""Ask questions about rich scenes: the seven types, with nouns and their kinds, in several wordings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from data.scenes.ask import (
    CORNERS,
    COUNTS,
    OPTIONS,
    PLURALS,
    RELATIONS,
    YES_NO,
    Question,
    pick,
    singles,
)
from data.scenes.draw import COLORS, DIGITS, LETTERS, SIZES, Scene
from data.scenes.nouns import KINDS, MAIN_KINDS, PICTURED, allowed, doubts_of, names_of, options_like, siblings
from data.scenes.rich import frequency, plan_rich_looks

EXISTENCE = (
    "Is there {one}?",
    "Can you see {one}?",
    "Does the image show {one}?",
    "Do you see {one} in the image?",
    "Does {one} appear anywhere in this picture?",
)
COUNTING = (
    "How many {many} are there?",
    "How many {many} can you see?",
    "What is the number of {many}?",
    "Count the {many}.",
    "Tell me how many {many} this picture has.",
)
COLOR = (
    "What color is the {one}?",
    "What is the color of the {one}?",
    "Which color does the {one} have?",
    "In this picture, how is the {one} colored?",
)
WORDINGS: dict[tuple[str, str], tuple[str, ...]] = {
    ("existence", "noun"): EXISTENCE,
    ("existence", "kind"): EXISTENCE,
    ("existence", "phrase"): EXISTENCE,
    ("counting", "noun"): COUNTING,
    ("counting", "kind"): COUNTING,
    ("attribute", "color"): COLOR,
    ("attribute", "size"): (
        "What size is the {one}?",
        "Is the {one} small or large?",
        "How big is the {one}, small or large?",
        "Which of the two is true of the {one} in this picture: small or large?",
    ),
    ("attribute", "which"): (
        "What {kind} is shown?",
        "Which {kind} can you see?",
        "What {kind} is in the image?",
        "Name the {kind} in this picture.",
    ),
    ("attribute", "kind"): (
        "Is the object in the {corner} part of the image {options}?",
        "What is the object in the {corner} part: {options}?",
        "Look at the {corner} part. Is the object there {options}?",
        "Say whether the object in the {corner} of this picture is {options}.",
    ),
    ("attribute", "place"): (
        "What is in the {corner} part of the image?",
        "What do you see in the {corner} part?",
        "Which object is in the {corner} part?",
        "Name the object in the {corner} of this picture.",
    ),
    ("attribute", "beside"): (
        "What is {relation} the {one}?",
        "Which object is {relation} the {one}?",
        "What do you see {relation} the {one}?",
        "Name the object {relation} the {one} in this picture.",
    ),
    ("relation", "relation"): (
        "Is the {one} {relation} the {other}?",
        "Does the {one} lie {relation} the {other}?",
        "Can you see the {one} {relation} the {other}?",
        "Would you find the {one} {relation} the {other} in this picture?",
    ),
    ("reading", "shown"): (
        "What {noun} is shown?",
        "Which {noun} can you see?",
        "What {noun} is in the image?",
        "Name the {noun} in this picture.",
    ),
    ("reading", "phrase"): (
        "What is the {one}?",
        "Which {noun} is on the {color} tile?",
        "What {noun} does the {color} tile show?",
        "Read the {noun} on the {color} tile in this picture.",
    ),
    ("choice", "which"): (
        "Which of these is shown?",
        "Which of these can you see?",
        "Which one is in the image?",
        "Pick what this picture shows.",
    ),
    ("choice", "color"): COLOR,
    ("position", "position"): (
        "Where is the {one}?",
        "Where in the image is the {one}?",
        "In which part of the image is the {one}?",
        "Tell me in what corner of this picture the {one} lies.",
    ),
}
"""The wordings of each template of each question type. The last one is kept for the test split."""
MANY = (
    PLURALS | {name: noun.plural for name, noun in PICTURED.items()} | {kind: many for kind, (_, many) in KINDS.items()}
)
"""What several objects of a noun or kind are called."""
OFF_MIDDLE = 30
"""Least distance in pixels of a centre from the lines between quarters, where a question is about a quarter."""


@dataclass(frozen=True)
class RichQuestion(Question):
    """A question about a rich scene.

    Attributes
    ----------
    new_noun : bool
        Whether the question, its answer, or an object that it is about has a noun kept for the test split.
    new_wording : bool
        Whether its wording is kept for the test split.
    """

    new_noun: bool = False
    new_wording: bool = False


class _Asker:
    """One scene, and what can be said about it without doubt."""

    def __init__(self, rng: np.random.Generator, scene: Scene, split: str) -> None:
        self.rng, self.split, self.things, self.side = rng, split, scene.things, scene.side
        self.nouns = [thing.noun for thing in self.things]
        self.counts, self.doubts = census(self.nouns)

    def certain(self, name: str) -> bool:
        """Tell whether no object might be called so that is not surely so."""
        return name not in self.doubts

    def unique(self) -> list[int]:
        """Return the objects that their noun, or their colour and noun, names without doubt."""
        return [i for i in singles([t.phrase for t in self.things]) if self.certain(self.nouns[i])]

    def absent(self, name: str) -> bool:
        return not self.counts[name] and self.certain(name)

    def one_picture(self) -> list[int]:
        return [i for i in self.unique() if self.nouns[i] in PICTURED]

    def question(
        self,
        question_type: str,
        template: str,
        choices: Sequence[str],
        answer: str,
        about: Sequence[int],
        subject: str,
        named: Sequence[str] = (),
        ending: str = "",
        **parts: str,
    ) -> RichQuestion:
        """Word a question; `named` are nouns in its text or answer."""
        wordings = WORDINGS[question_type, template]
        new_wording = self.split == "test" and self.rng.random() < 0.5
        text = wordings[-1] if new_wording else pick(self.rng, wordings[:-1])
        nouns = [*named, *(self.nouns[i] for i in about)]
        return RichQuestion(
            question_type,
            template,
            text.format(**parts) + ending,
            tuple(choices),
            answer,
            tuple(int(i) for i in about),
            subject,
            any(noun in PICTURED and PICTURED[noun].test_only for noun in nouns),
            new_wording,
        )


def census(nouns: Sequence[str]) -> tuple[Counter[str], set[str]]:
    """Return how many objects each noun and kind names without doubt, and what some object might be called too."""
    counts = Counter(name for noun in nouns for name in names_of(noun))
    return counts, {doubt for noun in nouns for doubt in doubts_of(noun)}


def shuffle(rng: np.random.Generator, items: Sequence[str]) -> list[str]:
    """Return the items in a random order."""
    return [items[i] for i in rng.permutation(len(items))]


def as_often(rng: np.random.Generator, nouns: Sequence[str], count: int) -> list[str]:
    """Return so many of the nouns, or all, each as often as scenes hold it."""
    if not nouns or not count:
        return []
    weights = np.array([frequency(noun) if noun in PICTURED else 1.0 for noun in nouns])
    chosen = rng.choice(len(nouns), min(count, len(nouns)), replace=False, p=weights / weights.sum())
    return [nouns[i] for i in chosen]


def with_article(name: str) -> str:
    """Return a noun, phrase or kind with its article."""
    if name in KINDS:
        return KINDS[name][0]
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def existence(asker: _Asker) -> RichQuestion | None:
    """Ask whether a noun, a kind or a coloured shape is there.

    What is asked about is there in exactly one of two scenes, this one or another that was planned as likely, so that
    its name does not tell the answer. Every second absent noun, or shape of a colour, is like one that is there: of
    its group, or a colour and a noun that are both there.
    """
    rng = asker.rng
    template = pick(rng, ("noun", "noun", "kind", "phrase"))
    present = bool(rng.random() < 0.5)
    looks = plan_rich_looks(rng, asker.split, len(asker.things), len(asker.things))
    counts, doubts = census([noun for noun, _ in looks])
    if template == "phrase":
        here = {t.phrase: t.noun for t in asker.things if t.color}
        there = {f"{color} {noun}": noun for noun, color in looks if color}
    else:
        here, there = (
            {n: n for n in names if (n in KINDS) == (template == "kind")} for names in (asker.counts, counts)
        )
    if not present and template != "kind" and rng.random() < 0.5:
        doubts = set()
        if template == "phrase":
            there = {f"{t.color} {u.noun}": u.noun for t in asker.things for u in asker.things if t.color and u.color}
        else:
            alike = [noun for noun in siblings(pick(rng, asker.nouns)) if asker.absent(noun)]
            there = {noun: noun for noun in as_often(rng, alike, 1)}
    asked, other = (here, there) if present else (there, here)
    sure = [name for name in asked if name not in other and asker.certain(asked[name]) and asked[name] not in doubts]
    if not sure:
        return None
    target = pick(rng, sure)
    names = [(thing.phrase,) if template == "phrase" else names_of(thing.noun) for thing in asker.things]
    about = [i for i, known in enumerate(names) if target in known]
    one = with_article(target)
    return asker.question("existence", template, YES_NO, YES_NO[not present], about, target, [asked[target]], one=one)


def counting(asker: _Asker) -> RichQuestion | None:
    """Ask how many objects are of a noun or a kind; the answer 1 to 4 is drawn first."""
    answer = pick(asker.rng, COUNTS)
    template = pick(asker.rng, ("noun", "kind"))
    pool = [
        name
        for name, count in asker.counts.items()
        if str(count) == answer and (name in KINDS) == (template == "kind") and asker.certain(name) and name in MANY
    ]
    if not pool:
        return None
    name = pick(asker.rng, pool)
    about = [i for i, noun in enumerate(asker.nouns) if name in names_of(noun)]
    return asker.question("counting", template, COUNTS, answer, about, name, many=MANY[name])


def _color(asker: _Asker) -> int | None:
    pool = [i for i in singles(asker.nouns) if asker.things[i].color and asker.certain(asker.nouns[i])]
    return pick(asker.rng, pool) if pool else None


def _alone_in_corner(asker: _Asker) -> tuple[int, str] | None:
    """Return a picture that lies alone in a quarter of the image, and the quarter; by `OFF_MIDDLE`."""
    middle = asker.side / 2
    found = []
    for i in range(len(asker.things)):
        signs = [1 if c > middle else -1 for c in asker.things[i].center]
        # (objects, 2): how far each centre lies inside the quarter
        inside = np.array([[s * (c - middle) for s, c in zip(signs, t.center, strict=True)] for t in asker.things])
        others = np.delete(inside, i, 0)
        clear = (inside[i] >= OFF_MIDDLE).all() and (others <= -OFF_MIDDLE).any(-1).all()
        if asker.nouns[i] in PICTURED and clear:
            found.append((i, CORNERS[2 * (signs[1] > 0) + (signs[0] > 0)]))
    return pick(asker.rng, found) if found else None


def _beside(asker: _Asker) -> tuple[int, int, str] | None:
    """Return a picture, what lies next to it, and on which side of that it alone lies, by 40 pixels or more."""
    found = []
    names = set(asker.unique())
    for word, (axis, sign) in RELATIONS.items():
        along = sorted(range(len(asker.things)), key=lambda i: -sign * asker.things[i].center[axis])
        if len(along) < 2 or asker.nouns[along[0]] not in PICTURED or along[1] not in names:
            continue
        places = [sign * asker.things[i].center[axis] for i in along]
        if places[0] - places[1] >= 40 and (len(along) == 2 or places[1] - places[2] >= 20):
            found.append((along[0], along[1], word))
    return pick(asker.rng, found) if found else None


def attribute(asker: _Asker) -> RichQuestion | None:
    """Ask for a colour, a size, or what an object is, which is named by its kind, its place or its neighbour."""
    rng, things = asker.rng, asker.things
    template = pick(rng, ("color", "size", "which", "kind", "place", "beside"))
    match template:
        case "color":
            i = _color(asker)
            if i is None:
                return None
            noun = things[i].noun
            return asker.question("attribute", template, tuple(COLORS), things[i].color, [i], noun, one=noun)
        case "size":
            pool = asker.unique() if len({t.size for t in things}) > 1 else []
            if not pool:
                return None
            i = pick(rng, pool)
            phrase = things[i].phrase
            return asker.question("attribute", template, tuple(SIZES), things[i].size, [i], phrase, one=phrase)
        case "which":
            kinds = [k for k in KINDS if asker.counts[k] == 1 and asker.certain(k)]
            if not kinds:
                return None
            kind = pick(rng, kinds)
            i = next(i for i, noun in enumerate(asker.nouns) if kind in names_of(noun))
            answers = [noun for noun in allowed(asker.split) if kind in names_of(noun)]
            return asker.question("attribute", template, answers, asker.nouns[i], [i], "", kind=kind)
        case "kind" | "place":
            placed = _alone_in_corner(asker)
            if placed is None:
                return None
            i, corner = placed
            if template == "place":
                answers = allowed(asker.split)
                return asker.question("attribute", template, answers, asker.nouns[i], [i], corner, corner=corner)
            noun = PICTURED[asker.nouns[i]]
            if not noun.group:
                return None
            others = [k for k in MAIN_KINDS if k != noun.group and k not in noun.doubts]
            kinds = shuffle(rng, [noun.group, *shuffle(rng, others)[:3]])
            spoken = [with_article(kind) for kind in kinds]
            options = f"{', '.join(spoken[:-1])} or {spoken[-1]}"
            return asker.question("attribute", template, kinds, noun.group, [i], "", corner=corner, options=options)
        case _:
            pair = _beside(asker)
            if pair is None:
                return None
            i, j, word = pair
            answers = allowed(asker.split)
            return asker.question(
                "attribute", template, answers, asker.nouns[i], [i, j], "", relation=word, one=things[j].phrase
            )


def choice(asker: _Asker) -> RichQuestion | None:
    """Ask for a colour, or which of four nouns that are alike is there, with lettered options.

    In the test split two of the four nouns are kept for it, so that being new does not tell the answer.
    """
    rng = asker.rng
    template = pick(rng, ("which", "which", "color"))
    correct = int(rng.integers(4))
    if template == "color":
        i = _color(asker)
        if i is None:
            return None
        answer = asker.things[i].color
        others = [color for color in COLORS if color != answer]
        options = shuffle(rng, others)[:3]
        parts, about = {"one": asker.nouns[i]}, [i]
    else:
        pool = [noun for noun in dict.fromkeys(asker.nouns) if noun in PICTURED and asker.certain(noun)]
        if not pool:
            return None
        answer = pick(rng, pool)
        absent = [noun for noun in options_like(answer) if asker.absent(noun)]
        new = [noun for noun in absent if PICTURED[noun].test_only]
        known = [noun for noun in absent if not PICTURED[noun].test_only]
        wanted = (0, 3) if asker.split != "test" else (1, 2) if PICTURED[answer].test_only else (2, 1)
        if len(new) < wanted[0] or len(known) < wanted[1]:
            return None
        options = shuffle(rng, [*as_often(rng, new, wanted[0]), *as_often(rng, known, wanted[1])])
        parts, about = {}, [i for i, one in enumerate(asker.nouns) if one == answer]
    options.insert(correct, answer)
    listing = " ".join(["", *(f"{o} {v}" for o, v in zip(OPTIONS, options, strict=True))])
    return asker.question("choice", template, OPTIONS, OPTIONS[correct], about, answer, ending=listing, **parts)


def relation(asker: _Asker) -> RichQuestion | None:
    """Ask whether one object is left of, right of, above or below another, at least 40 pixels apart on that axis."""
    things, pool = asker.things, asker.unique()
    if len(pool) < 2:
        return None
    i, j = (int(k) for k in asker.rng.permutation(pool)[:2])
    word = pick(asker.rng, list(RELATIONS))
    axis, sign = RELATIONS[word]
    apart = things[i].center[axis] - things[j].center[axis]
    if abs(apart) < 40:
        return None
    answer = YES_NO[apart * sign < 0]
    return asker.question(
        "relation",
        "relation",
        YES_NO,
        answer,
        [i, j],
        word,
        one=things[i].phrase,
        other=things[j].phrase,
        relation=word,
    )


def position(asker: _Asker) -> RichQuestion | None:
    """Ask for the quarter of the image in which an object's centre lies, `OFF_MIDDLE` from the middle lines."""
    middle = asker.side / 2
    pool = [i for i in asker.unique() if all(abs(c - middle) >= OFF_MIDDLE for c in asker.things[i].center)]
    if not pool:
        return None
    i = pick(asker.rng, pool)
    x, y = asker.things[i].center
    answer = CORNERS[2 * (y > middle) + (x > middle)]
    phrase = asker.things[i].phrase
    return asker.question("position", "position", CORNERS, answer, [i], phrase, one=phrase)


def reading(asker: _Asker) -> RichQuestion | None:
    """Ask for a printed letter or a handwritten digit."""
    noun, alphabet = pick(asker.rng, (("letter", LETTERS), ("digit", DIGITS)))
    glyphs = [i for i, one in enumerate(asker.nouns) if one == noun]
    if not glyphs or not asker.certain(noun):
        return None
    if len(glyphs) == 1 and asker.rng.random() < 0.5:
        text = asker.things[glyphs[0]].text
        return asker.question("reading", "shown", alphabet, text, glyphs, noun, noun=noun)
    pool = [i for i in asker.unique() if i in glyphs]
    if not pool:
        return None
    i = pick(asker.rng, pool)
    parts = {"one": asker.things[i].phrase, "noun": noun, "color": asker.things[i].color}
    return asker.question("reading", "phrase", alphabet, asker.things[i].text, [i], noun, **parts)


RICH_QUESTION_TYPES: dict[str, Callable[[_Asker], RichQuestion | None]] = {
    "existence": existence,
    "counting": counting,
    "attribute": attribute,
    "relation": relation,
    "reading": reading,
    "choice": choice,
    "position": position,
}


def ask_rich(
    rng: np.random.Generator,
    scene: Scene,
    count: int,
    tries: int = 40,
    types: Sequence[str] = tuple(RICH_QUESTION_TYPES),
    split: str = "train",
) -> list[RichQuestion]:
    """Ask about `count` questions of the given types about one rich scene, none twice.

    Parameters
    ----------
    rng : numpy.random.Generator
        Source of all randomness.
    scene : Scene
        A rich scene of the split; its image is not looked at.
    count : int
        How many questions are wanted; there are fewer where the scene does not give so many.
    tries : int
        Tries for each question wanted.
    types : Sequence[str]
        Question types, asked in turn.
    split : {"train", "validation", "test"}
        Whose nouns and wordings are used.
    """
    asker = _Asker(rng, scene, split)
    asked: dict[str, RichQuestion] = {}
    for turn in range(tries * count):
        if len(asked) == count:
            break
        question = RICH_QUESTION_TYPES[types[turn % len(types)]](asker)
        if question is not None:
            asked.setdefault(question.text, question)
    return list(asked.values())
