"""What drawn pictures, films, pages and tones say is true of them: measured on their pixels and samples."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from phirt.errors import ConfigError
from phirt_train.data.records import Conversation, read_records
from phirt_train.preparation import PreparationTask
from phirt_train.progress import ignore
from recipes.nano.questions import NUMBERS
from recipes.nano.shapes import COLOURS
from recipes.reports.clips import draw_film
from recipes.reports.documents import draw_page
from recipes.reports.figures import draw_boxed, draw_chart
from recipes.reports.frames import Frames


def _generators(count: int) -> Iterator[np.random.Generator]:
    return (np.random.default_rng(seed) for seed in range(count))


def _near(image: Image.Image, colour: str) -> np.ndarray:
    """Which pixels have a tone of a colour."""
    return np.abs(np.asarray(image, int) - COLOURS[colour]).max(axis=2) <= 18


def test_bars_are_as_high_as_the_chart_says() -> None:
    for rng in _generators(40):
        figure = draw_chart(rng, 180)
        shown = dict(figure.questions)["Read the chart."]
        values = {name: int(value) for name, value in (bar.split() for bar in shown.split(", "))}
        for name, value in values.items():
            rows = np.flatnonzero(_near(figure.image, name).sum(axis=1) >= 8)  # fewer are numbers and lines
            assert abs((rows[-1] - rows[0]) / 15 - value) < 0.25, (name, value)
        tallest = max(values, key=lambda name: values[name])
        assert dict(figure.questions)["Which bar is the tallest?"] == tallest


def test_a_box_holds_the_middle_of_its_shape() -> None:
    for rng in _generators(40):
        figure = draw_boxed(rng, 200)
        (asked, box), (_, name) = figure.questions
        left, top, right, bottom = (2 * int(edge) for edge in box.split())
        assert name.split(maxsplit=1)[1] in asked
        middle = figure.image.crop(((left + right) // 2 - 2, (top + bottom) // 2 - 2, (left + right) // 2 + 2,
                                    (top + bottom) // 2 + 2))  # fmt: skip
        assert _near(middle, name.split()[1]).all()


def test_films_show_what_is_asked_about_them() -> None:
    seen = set()
    for rng in _generators(120):
        film = draw_film(rng, 96, 4)
        frames = [np.asarray(frame, int) for frame in film.frames]
        changed = [np.abs(frame - frames[0]).max(axis=2) > 40 for frame in frames]
        if film.question.startswith("Which way"):
            seen.add(film.answer)
            axis, sign = {"left": (1, -1), "right": (1, 1), "up": (0, -1), "down": (0, 1)}[film.answer]
            # Against the last frame, the second one's shape is new ground on the side that it comes from.
            places = [np.argwhere(np.abs(frame - frames[-1]).max(axis=2) > 40) for frame in frames[1:3]]
            assert sign * (places[1].mean(axis=0) - places[0].mean(axis=0))[axis] > 2
            assert np.ptp(places[0], axis=0)[axis] > np.ptp(places[0], axis=0)[1 - axis]
        elif film.question.startswith("In which picture"):
            seen.add("when")
            first = next(index for index, one in enumerate(changed) if one.any())
            assert film.answer == ("first", "second", "third", "fourth")[first]
        elif film.question.startswith("How many"):
            seen.add("count")
            assert film.answer in NUMBERS[1:]
    assert seen == {"left", "right", "up", "down", "when", "count"}


def test_a_page_is_as_large_as_it_should_be_and_no_line_leaves_it() -> None:
    page = draw_page([("Town", "Brazzaville-les-Bains"), ("Code", "807")], 2, 128)
    assert page.size == (128, 128)
    ink = np.asarray(page, int).max(axis=2) < 128
    assert ink.any() and not ink[:, 126:].any()


def test_frames_are_written_with_their_pictures(data: Path, tmp_path: Path) -> None:
    task = PreparationTask(data, tmp_path, 3, ignore)
    Frames(films=5, long_films=2, frames=3, long_frames=6, side=64, stories=4).write(task)
    counts = {"films.train": 3, "films_long.train": 6, "boxes_apart.train": 3, "story_order": 3}
    for name, pictures in counts.items():
        path = tmp_path / f"talks/{name}.jsonl"
        for _, record in read_records(path, Conversation):
            assert len(record.messages[0].images) == pictures
            assert all((path.parent / image).is_file() for image in record.messages[0].images)
    (_, claim), *_ = read_records(tmp_path / "talks/boxes_apart.train.jsonl", Conversation)
    with Image.open(tmp_path / "talks" / claim.messages[0].images[2]) as box:
        assert box.size == (100, 100)


def test_a_package_without_boxes_says_what_is_needed(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nlvr\.train\.tar is needed"):
        Frames(films=1, long_films=1).write(PreparationTask(tmp_path, tmp_path / "out", 3, ignore))
