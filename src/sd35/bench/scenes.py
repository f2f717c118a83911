"""Scenes that the embedded model knows, in words, and what a picture of each has to show."""

from itertools import product
from typing import NamedTuple

_OBJECTS = (
    "cat", "dog", "panda", "frog", "fish", "whale", "owl", "lion", "crab", "bee", "snail", "turtle", "rabbit", "apple",
    "banana", "pizza", "tree", "rose", "star", "car", "rocket", "castle", "guitar", "robot",
)  # fmt: skip
_GROUNDS = ("white", "black", "red", "blue", "green", "yellow", "pink", "purple")
_STRIDE = 37  # has no divisor in common with how many scenes there are of a kind
_RELATIONS = {"left": "to the left of", "right": "to the right of", "above": "above", "below": "below"}


class Scene(NamedTuple):
    """One object on a ground, or two of which the first stands so to the second."""

    objects: tuple[str, ...]
    ground: str
    relation: str | None = None

    @property
    def prompt(self) -> str:
        """As "a cat to the left of an owl on a red background"."""
        words = f" {_RELATIONS[self.relation]} ".join if self.relation else "".join
        return f"{words([_with_article(name) for name in self.objects])} on {_with_article(self.ground)} background"


def scenes() -> list[Scene]:
    """Each object on each ground, and pairs of objects, each in one relation on one ground."""
    singles = [Scene((name,), ground) for name, ground in product(_OBJECTS, _GROUNDS)]
    pairs = [(first, second) for first, second in product(_OBJECTS, _OBJECTS) if first != second]
    relations = list(_RELATIONS)
    return singles + [
        Scene(pair, _GROUNDS[index % len(_GROUNDS)], relations[index % len(relations)])
        for index, pair in enumerate(pairs)
    ]


def judged_scenes(count: int) -> list[Scene]:
    """So many scenes that pictures are judged by: singles and pairs in turns, spread over all of them."""
    everything = scenes()
    singles = [scene for scene in everything if not scene.relation]
    pairs = [scene for scene in everything if scene.relation]
    return [
        kind[(index * _STRIDE) % len(kind)] for index, kind in enumerate((singles, pairs)[i % 2] for i in range(count))
    ]


def _with_article(word: str) -> str:
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"
