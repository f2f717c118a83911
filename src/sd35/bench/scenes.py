"""Scenes that the embedded model knows: the prompt of each, and the objects that its image must show."""

from itertools import product
from typing import NamedTuple

_OBJECTS = (
    "cat", "dog", "panda", "frog", "fish", "whale", "owl", "lion", "crab", "bee", "snail", "turtle", "rabbit", "apple",
    "banana", "pizza", "tree", "rose", "star", "car", "rocket", "castle", "guitar", "robot",
)  # fmt: skip
_BACKGROUNDS = ("white", "black", "red", "blue", "green", "yellow", "pink", "purple")
# Spreads the chosen scenes over all of them. The kinds alternate, so every 74th of the 192 single scenes and of the 552
# pair scenes is taken. A scene repeats only after half of its kind is taken: the first repetition is image 193.
_STRIDE = 37
_RELATIONS = {"left": "to the left of", "right": "to the right of", "above": "above", "below": "below"}


class Scene(NamedTuple):
    """One object on a background, or two objects. `relation` says where the first one is, such as "left" or "above"."""

    objects: tuple[str, ...]
    background: str
    relation: str | None = None

    @property
    def prompt(self) -> str:
        """The prompt, such as "a cat to the left of an owl on a red background"."""
        separator = f" {_RELATIONS[self.relation]} " if self.relation else ""
        objects = separator.join(_with_article(name) for name in self.objects)
        return f"{objects} on {_with_article(self.background)} background"


def all_scenes() -> list[Scene]:
    """List each object on each background, then each ordered pair of objects in one relation on one background."""
    singles = [Scene((name,), background) for name, background in product(_OBJECTS, _BACKGROUNDS)]
    pairs = [(first, second) for first, second in product(_OBJECTS, _OBJECTS) if first != second]
    relations = list(_RELATIONS)
    return singles + [
        Scene(pair, _BACKGROUNDS[index % len(_BACKGROUNDS)], relations[index % len(relations)])
        for index, pair in enumerate(pairs)
    ]


def evaluation_scenes(count: int) -> list[Scene]:
    """Choose `count` scenes to evaluate images by: single objects and pairs alternately, spread over all scenes."""
    singles = [scene for scene in all_scenes() if not scene.relation]
    pairs = [scene for scene in all_scenes() if scene.relation]
    chosen = []
    for index in range(count):
        group = pairs if index % 2 else singles
        chosen.append(group[(index * _STRIDE) % len(group)])
    return chosen


def _with_article(word: str) -> str:
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"
