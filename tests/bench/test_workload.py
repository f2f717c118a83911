"""Workload files, and the requests that are drawn from them."""

import json
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest

from sd35.bench.workload import Kind, Workload, mixed, plain, read_workload
from sd35.errors import InvalidSetting

DOCUMENT = Path(__file__).parents[2] / "docs" / "benchmarking.md"
TOML = """
name = "ours"
seed = 3
repeated_prompts = 0.25
prompts = ["a cat", "a dog"]

[[classes]]
name = "short"
weight = 3
sizes = ["128x128", "96x64"]
steps = [4]
guidance = [0, 4.5]

[[classes]]
name = "long"
steps = [28]
guidance = [4.5]
prompts = ["a whale"]
negative_prompt = "a fish"
"""


def test_a_file_is_read_as_it_is_documented(tmp_path: Path):
    """From TOML, and the same from JSON."""
    (tmp_path / "it.toml").write_text(TOML)
    workload = read_workload(tmp_path / "it.toml")
    (tmp_path / "it.json").write_text(workload.model_dump_json())
    assert read_workload(tmp_path / "it.json") == workload
    drawn = list(islice(workload.requests("x"), 400))
    kinds = Counter(wanted.kind for wanted in drawn)
    assert 2 < kinds["short"] / kinds["long"] < 4.5
    short = [wanted for wanted in drawn if wanted.kind == "short"]
    assert {wanted.size_px for wanted in short} == {(128, 128), (96, 64)}
    assert {wanted.row_steps for wanted in short} == {4, 8}  # without guidance, with it
    assert {(w.prompt, w.negative_prompt) for w in drawn if w.kind == "long"} == {("a whale", "a fish")}


def test_the_documented_default_is_the_default(tmp_path: Path):
    """What docs/benchmarking.md writes out asks for the same, to the digest."""
    (tmp_path / "it.toml").write_text(DOCUMENT.read_text().partition("```toml\n")[2].partition("```")[0])
    assert read_workload(tmp_path / "it.toml") == mixed()


def test_the_same_seed_asks_for_the_same():
    """In each part of a run, which asks for other things than the other parts."""
    once, again = (list(islice(mixed().requests("closed/1"), 50)) for _ in range(2))
    other = list(islice(mixed().requests("closed/2"), 50))
    salted = list(islice(mixed().requests("closed/1", 2**31), 50))
    assert [each._replace(seed=0) for each in salted] == [each._replace(seed=0) for each in once]
    assert not {each.seed for each in salted} & {each.seed for each in once}
    assert all(0 < each.seed < 2**32 for each in salted)
    assert once == again
    assert not {wanted.seed for wanted in once} & {wanted.seed for wanted in other}


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_prompts_come_again_as_often_as_was_said(share: float):
    """And images never, where that is not said."""
    workload = Workload(name="w", repeated_prompts=share, classes=(Kind(name="k"),))
    drawn = list(islice(workload.requests("x"), 400))
    assert 1 - len({wanted.prompt for wanted in drawn}) / 400 == pytest.approx(share, abs=0.08)
    assert len({wanted.seed for wanted in drawn}) == 400


def test_whole_images_come_again_where_that_is_said():
    """The very same request, so that a server may give what it made before."""
    drawn = list(islice(Workload(name="w", repeated_images=0.5, classes=(Kind(name="k"),)).requests("x"), 400))
    assert len(set(drawn)) == pytest.approx(200, abs=40)


def test_what_is_left_to_the_server_is_not_known():
    """No steps, no size; so no work can be told."""
    wanted = next(plain().requests("x"))
    assert (wanted.steps, wanted.size_px, wanted.row_steps) == (None, None, None)


def test_a_workload_is_told_by_what_it_asks_not_by_its_name():
    """Two of one digest ask for the same."""
    again = mixed().model_copy(update={"name": "another"})
    assert again.digest == mixed().digest
    assert mixed().model_copy(update={"seed": 2}).digest != mixed().digest


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sped": 1}, "sped: got an unknown key; allowed: name, seed, repeated_prompts, repeated_images, prompts"),
        ({"repeated_prompts": 2}, "repeated_prompts: got 2; input should be less than or equal to 1"),
        ({"classes": []}, "classes: got []; allowed: one or more"),
        ({"classes": [{"name": "all"}]}, "classes.0.name: got 'all'; allowed: any other name"),
        ({"classes": [{"name": "a", "step": [4]}]}, "classes.0.step: got an unknown key; allowed: name, weight, sizes"),
        ({"classes": [{"name": "a", "steps": [0]}]}, "classes.0.steps.0: got 0; input should be greater than or equal"),
        ({"classes": [{"name": "a", "weight": -1}]}, "classes.0.weight: got -1; input should be greater than 0"),
        ({"classes": [{"name": "a", "sizes": ["big"]}]}, "classes.0.sizes.0: got 'big'; allowed: WIDTHxHEIGHT"),
        ({"classes": [{"steps": [4]}]}, "classes.0.name: is missing"),
        ({"classes": [{"name": "a"}, {"name": "a"}]}, "classes: two are named 'a'"),
    ],
)
def test_a_wrong_file_is_told_by_field(tmp_path: Path, change: dict[str, object], words: str):
    """What came, and what is allowed."""
    file = tmp_path / "wrong.json"
    file.write_text(json.dumps({"name": "w", "classes": [{"name": "a"}]} | change))
    with pytest.raises(InvalidSetting) as raised:
        read_workload(file)
    assert words in str(raised.value)
    assert str(file) in str(raised.value)


def test_a_class_that_is_wrong_is_told_once(tmp_path: Path):
    """Its list is not told to be too short besides."""
    (tmp_path / "wrong.json").write_text('{"name": "w", "classes": [{"name": "a", "bogus": 1}]}')
    with pytest.raises(InvalidSetting) as raised:
        read_workload(tmp_path / "wrong.json")
    assert str(raised.value).count("classes") == 1


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.toml", "= 3"),
        ("a.json", "{"),
        ("missing.json", None),
        ("a.toml", "a = " + "[" * 200_000),
        ("a.json", "[" * 200_000),
        ("a.json", "9" * 5_000),
    ],
)
def test_a_file_that_is_none_is_told(tmp_path: Path, name: str, content: str | None):
    """Not of the form its name says, or not there."""
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(InvalidSetting, match=name):
        read_workload(tmp_path / name)
