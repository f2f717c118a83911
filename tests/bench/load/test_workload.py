"""Workload files, and the requests of a workload."""

import json
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest

from sd35.bench.load.workload import RequestClass, Workload, mixed_workload, plain_workload, read_workload
from sd35.errors import InvalidSetting

DOCUMENT = Path(__file__).parents[3] / "docs" / "guide" / "benchmarking.md"
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


def test_a_workload_is_read_from_toml_and_json_alike(tmp_path: Path):
    """The classes occur in proportion to their weights."""
    (tmp_path / "it.toml").write_text(TOML)
    workload = read_workload(tmp_path / "it.toml")
    (tmp_path / "it.json").write_text(workload.model_dump_json())
    assert read_workload(tmp_path / "it.json") == workload
    requests = list(islice(workload.requests("x"), 400))
    counts = Counter(request.class_name for request in requests)
    assert 2 < counts["short"] / counts["long"] < 4.5
    short = [request for request in requests if request.class_name == "short"]
    assert {request.size_px for request in short} == {(128, 128), (96, 64)}
    assert {request.row_steps for request in short} == {4, 8}  # without and with guidance
    assert {(w.prompt, w.negative_prompt) for w in requests if w.class_name == "long"} == {("a whale", "a fish")}


def test_the_documented_default_is_the_default_workload(tmp_path: Path):
    """docs/guide/benchmarking.md shows it as TOML."""
    (tmp_path / "it.toml").write_text(DOCUMENT.read_text().partition("```toml\n")[2].partition("```")[0])
    assert read_workload(tmp_path / "it.toml") == mixed_workload()


def test_the_same_seed_and_part_give_the_same_requests():
    """Other parts give other requests. The offset changes only the image seeds."""
    once, again = (list(islice(mixed_workload().requests("closed/1"), 50)) for _ in range(2))
    other = list(islice(mixed_workload().requests("closed/2"), 50))
    offset = list(islice(mixed_workload().requests("closed/1", 2**31), 50))
    assert [each._replace(seed=0) for each in offset] == [each._replace(seed=0) for each in once]
    assert not {each.seed for each in offset} & {each.seed for each in once}
    assert all(0 < each.seed < 2**32 for each in offset)
    assert once == again
    assert not {request.seed for request in once} & {request.seed for request in other}


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_prompts_repeat_at_the_given_share(share: float):
    """Image seeds do not repeat."""
    workload = Workload(name="w", repeated_prompts=share, classes=(RequestClass(name="k"),))
    requests = list(islice(workload.requests("x"), 400))
    assert 1 - len({request.prompt for request in requests}) / 400 == pytest.approx(share, abs=0.08)
    assert len({request.seed for request in requests}) == 400


def test_images_repeat_at_the_given_share():
    """The whole request repeats, so that a server can use its cache."""
    requests = list(
        islice(Workload(name="w", repeated_images=0.5, classes=(RequestClass(name="k"),)).requests("x"), 400)
    )
    assert len(set(requests)) == pytest.approx(200, abs=40)


def test_a_plain_request_leaves_all_but_the_prompt_to_the_server():
    """The number of row-steps is unknown."""
    request = next(plain_workload().requests("x"))
    assert (request.steps, request.size_px, request.row_steps) == (None, None, None)


def test_the_digest_of_a_workload_ignores_its_name():
    """Everything else changes the digest."""
    again = mixed_workload().model_copy(update={"name": "another"})
    assert again.digest == mixed_workload().digest
    assert mixed_workload().model_copy(update={"seed": 2}).digest != mixed_workload().digest


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sped": 1}, "sped: got an unknown key; allowed: name, seed, repeated_prompts, repeated_images, prompts"),
        ({"repeated_prompts": 2}, "repeated_prompts: got 2; allowed: less than or equal to 1"),
        ({"classes": []}, "classes: got []; allowed: a list of one or more items"),
        ({"classes": [{"name": "all"}]}, "classes.0.name: got 'all'; allowed: any other name"),
        ({"classes": [{"name": "a", "step": [4]}]}, "classes.0.step: got an unknown key; allowed: name, weight, sizes"),
        ({"classes": [{"name": "a", "steps": [0]}]}, "classes.0.steps.0: got 0; allowed: greater than or equal to 1"),
        ({"classes": [{"name": "a", "weight": -1}]}, "classes.0.weight: got -1; allowed: greater than 0"),
        ({"classes": [{"name": "a", "sizes": ["big"]}]}, "classes.0.sizes.0: got 'big'; allowed: WIDTHxHEIGHT"),
        ({"classes": [{"steps": [4]}]}, "classes.0.name: is missing"),
        ({"classes": [{"name": "a"}, {"name": "a"}]}, "two classes are named 'a'; allowed: unique names"),
    ],
)
def test_the_error_of_a_wrong_file_names_the_field(tmp_path: Path, change: dict[str, object], message: str):
    """The error also gives the value and the allowed values."""
    file = tmp_path / "wrong.json"
    file.write_text(json.dumps({"name": "w", "classes": [{"name": "a"}]} | change))
    with pytest.raises(InvalidSetting) as raised:
        read_workload(file)
    assert message in str(raised.value)
    assert str(file) in str(raised.value)


def test_a_wrong_class_is_reported_once(tmp_path: Path):
    """The list of classes is not reported as too short in addition."""
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
def test_a_file_that_cannot_be_parsed_is_refused(tmp_path: Path, name: str, content: str | None):
    """The content does not match the suffix, or the file is missing."""
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(InvalidSetting, match=name):
        read_workload(tmp_path / name)
