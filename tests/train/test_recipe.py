"""Recipes that are wrong: each ends in one ConfigError of one line, whatever is wrong with it."""

from __future__ import annotations

import copy
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from phirt.errors import ConfigError
from phirt_train.recipe import load_recipe
from phirt_train.weights import check_recipe

RECIPE = Path(__file__).resolve().parents[2] / "export/recipes/nano/recipe.toml"
TEXT = RECIPE.read_text(encoding="utf-8")
NANO: dict[str, Any] = tomllib.loads(TEXT)


def refusal(path: Path, scale: str | None = None) -> str:
    """The line that a recipe is refused with."""
    with pytest.raises(ConfigError) as refused:
        check_recipe(load_recipe(path, scale))
    line = str(refused.value)
    assert "\n" not in line and len(line) < 1000
    return line


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("num_kv_heads = 2", "num_kv_heads = 0", "'num_kv_heads' is 0, expected a whole number from 1"),
        ("num_kv_heads = 2", "num_kv_heads = 3", "num_heads 4 is not a multiple of num_kv_heads 3"),
        ("hidden_size = 256", "hidden_size = -256", "'hidden_size' is -256, expected a whole number from 1"),
        ("hidden_size = 256", 'hidden_size = "256"', "'hidden_size' is '256', expected a whole number"),
        ("theta = 10000.0", "theta = nan", "'theta' is nan, expected a number"),
        ("rotary_dim = 48", "rotary_dim = 47", "rotary_dim 47 needs"),
        ("vocab_size = 4096\nnorm", "vocab_size = 4095\nnorm", "give both the same vocab_size"),
        ("[[stage]]", "[stage]", "Cannot overwrite a value (at line 98, column 8); write [[stage]]"),
        ("steps = 2600", "steps = 0", "'steps' is 0, expected a whole number from 1"),
        ("batch = 64", "batch = 6.5", "'batch' is 6.5, expected a whole number"),
        ("peak = 2e-3", "peak = -2e-3", "'peak' is -0.002, expected a number from"),
        ("ema = 0.998", "ema = 1.0", "'ema' is 1.0, expected a number from 0 to 0.999999"),
        ("seed = 20261121", "seed = 2026-11-21", "'seed' is"),
        ('name = "text"', 'name = "../text"', "'name' is '../text', expected a name of letters"),
        ('name = "text"', 'name = "cache"', "a stage is called cache, as a folder of every run is"),
        ('starts_from = ["text"]', 'starts_from = ["joint"]', "starts from joint, which no earlier stage"),
        ('objective = "ctc"', 'objective = "guess"', "objective is 'guess'; accepted: "),
        ('trains = ["*lora_A.vision"', 'trains = ["*lora_C.vision"', "no parameter fits *lora_C.vision"),
        ("quantize_aware = 32", "quantize_aware = 48", "quantize_aware is 48; accepted: 0, or a power"),
        ("[[0.0, 96], [0.55, 128]]", "[[0.0, 90]]", "resolutions has the side 90; accepted: multiples of 32"),
        ('document_share = 0.6', 'document_share = 1.6', "'document_share' is 1.6, expected a number from 0"),
        ("mixup = 0.4", "mixed = 0.4", "'mixed' is not known here, accepted: sources"),
        ("speech = { rank", "tactile = { rank", "adapters has 'tactile'; accepted: vision beside"),
        ('module = "prepare.py"', 'module = "../prepare.py"', "'module' is '../prepare.py', expected the"),
        ("{%- endfor -%}", "{%- endfro -%}", "'chat_template' is no jinja template"),
        ("num_layers = 6", "num_layers = 1000\nqk_norm = 1", "'qk_norm' is 1, expected true or false"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_its_place(tmp_path: Path, before: str, after: str, message: str) -> None:
    assert before in TEXT
    path = tmp_path / "recipe.toml"
    path.write_text(TEXT.replace(before, after, 1), encoding="utf-8")
    line = refusal(path)
    assert message in line


@pytest.mark.parametrize("table", ["model", "tokenizer"])
def test_missing_tables_are_named(tmp_path: Path, table: str) -> None:
    document = {name: value for name, value in NANO.items() if name not in (table, "scale")}
    path = tmp_path / "recipe.toml"
    path.write_text(as_toml(document), encoding="utf-8")
    assert f"has no table {table}; give it, or name a checkpoint" in refusal(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"name = '\xff'", "is not valid TOML: 'utf-8' codec can't decode"),
        (b"name = ", "is not valid TOML"),
        (b"", "'name' is missing"),
        (b"name = 'a'\nstage = []", "'stage' is [], expected a list of objects of values, 1 to 256 of them"),
        (
            b"name = 'a'\n[stage]\nname = 'b'",
            "'stage' is one table, expected a list of them; write [[stage]]",
        ),
        (b"name = 'a'\nstage = 5", "'stage' is 5, expected a list"),
        (b"scale = 5", "scale: must be"),
        (b"x = " + b"[" * 100_000, "is not valid TOML"),
        (b"x = " + b"9" * 5000, "is not valid TOML"),
        (b"#" * (2 << 20), "is larger than 1048576 bytes"),
    ],
)
def test_files_that_are_no_recipe(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "recipe.toml"
    path.write_bytes(content)
    assert message in refusal(path)


def test_a_model_that_no_memory_holds_is_refused_before_it_is_made(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(TEXT.replace("intermediate_size = 768", "intermediate_size = 16777216", 1), "utf-8")
    assert "GB of memory, and" in refusal(path)


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths to everything in a document."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(place for key, one in inner for place in places(one, (*at, key)))]


PLACES = [place for place in places(NANO) if place]
NAMES = st.text("abc_", max_size=4)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([0, -1, 1, 2, 3, 1 << 24, 1 << 70, 10**400])
    | st.floats()
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("abc_", max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)


CHANGES = st.tuples(st.sampled_from(PLACES), st.just("leave out") | VALUES)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.lists(
        st.tuples(st.sampled_from(PLACES), st.just("leave out") | VALUES), min_size=1, max_size=2
    ),
    scale=st.sampled_from([None, "tiny"]),
)
def test_a_mutated_recipe_is_read_or_refused_in_one_line(
    tmp_path: Path, changes: list[tuple[tuple[Any, ...], Any]], scale: str | None
) -> None:
    document = copy.deepcopy(NANO)
    for place, value in changes:
        change(document, place, value)
    path = tmp_path / "recipe.toml"
    path.write_text(as_toml(document), encoding="utf-8")
    try:
        load_recipe(path, scale)
    except ConfigError as error:
        line = str(error)
        line.encode()
        assert "\n" not in line and len(line) < 2000


def change(document: Any, place: tuple[Any, ...], value: Any) -> None:
    """Put a value at a place, or take away what is there; a place that is gone stays so."""
    for key in place[:-1]:
        if not isinstance(document, dict | list) or (isinstance(document, dict) and key not in document):
            return
        if isinstance(document, list) and not (isinstance(key, int) and key < len(document)):
            return
        document = document[key]
    is_there = isinstance(document, list) and place[-1] in range(len(document))
    if is_there or (isinstance(document, dict) and isinstance(place[-1], str)):
        if value == "leave out":
            document.pop(place[-1], None) if isinstance(document, dict) else document.pop(place[-1])
        else:
            document[place[-1]] = value


def as_toml(value: dict[str, Any]) -> str:
    """A document as TOML, each value inline; None, which TOML has not, as a table."""
    return "".join(f"{quoted(key)} = {inline(one)}\n" for key, one in value.items())


def inline(value: Any) -> str:
    if value is None:
        return "{}"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, list):
        return f"[{', '.join(map(inline, value))}]"
    return "{" + ", ".join(f"{quoted(key)} = {inline(one)}" for key, one in value.items()) + "}"


def quoted(text: str) -> str:
    escaped = "".join(c if c.isprintable() and c not in '"\\' else f"\\U{ord(c):08x}" for c in text)
    return f'"{escaped}"'
