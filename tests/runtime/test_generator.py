"""The stateless generator: messages and callables in, text and a typed result out; how a model is closed."""

from __future__ import annotations

import dataclasses
import inspect
import threading

import numpy as np
import pytest
from conversing import SHORT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import phirt
from phirt import GenerationConfig, Message
from phirt.chat.chat import AnswerArguments, SendArguments
from phirt.errors import ClosedError, ConfigError, ContextError, RequestCancelledError
from phirt.generate.sampling import GenerationOverrides
from phirt.generator import StreamArguments


@pytest.fixture
def generator(model):
    return model.generator


def test_messages_in_text_and_result_out(generator, model, photo):
    chat = model.chat(system="be kind", tools=[{"name": "f"}])
    first = chat.send("see", images=[photo], config=SHORT).result
    second = chat.send("and now?", config=SHORT).result
    generator.pool.clear()
    messages = [
        generator.message("see", images=[photo]),
        Message("assistant", first.text, token_ids=first.token_ids),
    ]
    stream = generator.stream(
        [*messages, Message("user", "and now?")], system="be kind", tools=[{"name": "f"}], config=SHORT
    )
    pieces = list(stream)
    result = stream.result
    assert "".join(pieces) == result.text == second.text
    assert (result.token_ids, result.prompt_token_ids) == (second.token_ids, second.prompt_token_ids)
    assert (result.adapter, result.usage.image_tokens) == ("vision", 53)
    assert dataclasses.asdict(result.usage).keys() == {
        "prompt_tokens", "cached_tokens", "image_tokens", "audio_tokens", "new_tokens", "drafted_tokens",
        "accepted_tokens",
    }  # fmt: skip


def test_messages_may_come_from_an_iterator(generator):
    messages = [phirt.Message("user", "the fox")]
    listed = generator.stream(messages, max_new_tokens=3).result
    assert generator.stream(iter(messages), max_new_tokens=3).result.token_ids == listed.token_ids
    for wrong in (messages[0], "the fox", 5):
        with pytest.raises(ConfigError, match=r"accepted: a list of phirt\.Message"):
            generator.stream(wrong)


def test_an_answer_that_its_host_leaves_is_cancelled(generator):
    def leave(progress):
        raise SystemExit(3)

    stream = generator.stream([phirt.Message("user", "the fox")], on_progress=leave)
    with pytest.raises(SystemExit):
        next(stream)
    assert stream.result.finish_reason == "cancelled"


def test_it_keeps_nothing_of_a_request(generator):
    one = generator.stream([Message("user", "hello")], config=SHORT).result
    other = generator.stream([Message("user", "hello")], config=SHORT).result
    assert (one.token_ids, one.usage.prompt_tokens) == (other.token_ids, other.usage.prompt_tokens)


def test_a_common_beginning_is_run_once_for_all(generator, model):
    """Chats, and requests of nobody, with one long system message."""
    system = "word " * 40
    counts = [model.chat(system=system).send(f"question {n}", config=SHORT).result.usage for n in range(3)]
    counts.append(generator.stream([Message("user", "hello")], system=system, config=SHORT).result.usage)
    assert [usage.cached_tokens for usage in counts] == [0, 128, 128, 128]


def test_errors_show_before_anything_runs(generator):
    with pytest.raises(ContextError):
        generator.stream([Message("user", "x" * 2000)])
    for messages in (["hello"], [{"role": "user", "content": "x"}]):
        with pytest.raises(ConfigError, match=r"a message is a (str|dict), accepted: a phirt\.Message"):
            generator.stream(messages)
    with pytest.raises(ConfigError, match="system is a int"):
        generator.stream([Message("user", "x")], system=3)
    with pytest.raises(ConfigError, match="text is a bytes"):
        generator.message(b"x")
    assert generator.pool.num_busy == 0


@pytest.mark.parametrize("act", ["stream", "message"])
def test_a_request_may_be_cancelled_while_it_is_prepared(generator, photo, act):
    cancel = threading.Event()
    message = generator.message("see", images=[photo])
    cancel.set()
    with pytest.raises(RequestCancelledError):
        if act == "stream":
            generator.stream([message], cancel=cancel)
        else:
            generator.message("see", images=[photo], cancel=cancel)


def test_an_event_of_the_callers_ends_an_answer(generator):
    cancel = threading.Event()
    stream = generator.stream([Message("user", "hello")], cancel=cancel, max_new_tokens=100)
    next(stream)
    cancel.set()
    assert stream.result.finish_reason == "cancelled"


def test_one_event_may_end_many_answers_and_one_answer_ends_itself_alone(generator):
    cancel = threading.Event()
    streams = [
        generator.stream([Message("user", "hello")], cancel=cancel, max_new_tokens=100) for _ in range(3)
    ]
    for stream in streams:
        next(stream)
    streams[0].cancel()
    assert streams[0].result.finish_reason == "cancelled"
    assert not cancel.is_set()
    cancel.set()
    assert [stream.result.finish_reason for stream in streams] == ["cancelled"] * 3


def test_settings_may_be_given_beside_a_config(chat):
    config = GenerationConfig(max_new_tokens=50, stop=("never",))
    result = chat.send("hello", config=config, max_new_tokens=3).result
    assert (result.finish_reason, result.usage.new_tokens) == ("length", 3)
    with pytest.raises(
        ConfigError, match="there is no setting 'max_tokens', accepted: max_new_tokens, temperature"
    ):
        chat.send("hello", max_tokens=3)
    with pytest.raises(ConfigError, match="max_new_tokens is 0"):
        chat.send("hello", max_new_tokens=0)
    with pytest.raises(ConfigError, match="config is a dict, accepted: a GenerationConfig"):
        chat.send("hello", config={}, max_new_tokens=3)


@pytest.mark.parametrize(
    ("asynchronous", "method"),
    [
        (SendArguments, phirt.Chat.send),
        (AnswerArguments, phirt.Chat.send_tool_results),
        (StreamArguments, phirt.Generator.stream),
    ],
)
def test_the_asynchronous_ways_take_the_same_arguments(asynchronous, method):
    settings = {field.name for field in dataclasses.fields(GenerationConfig)}
    assert GenerationOverrides.__annotations__.keys() == settings
    keywords = {
        name for name, one in inspect.signature(method).parameters.items() if one.kind is one.KEYWORD_ONLY
    }
    assert asynchronous.__annotations__.keys() - settings == keywords - {"cancel"}


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        (
            None,
            "stop is None, accepted: a string of 1 to 1024 characters, or a list of such strings; an empty",
        ),
        (5, "stop is 5"),
        (b"x", "stop is b'x'"),
        ({"a": 1}, "stop is {'a': 1}"),
        ([None], "stop is"),
        ("", "stop is"),
    ],
)
def test_senseless_stop_strings(chat, stop, expected):
    with pytest.raises(ConfigError, match=expected):
        chat.send("hello", stop=stop)


def test_iterators_are_consumed_once(model, photo, clip):
    chat = model.chat(tools=iter([{"name": "f"}, {"name": "g"}]))
    assert chat.tools.names == {"f", "g"}
    result = chat.send(
        "x", images=iter([photo]), audio=(item for item in [clip]), stop=iter(["§"]), config=SHORT
    )
    assert (result.result.usage.image_tokens, result.result.usage.audio_tokens) == (53, 6)
    assert model.chat(tools=iter([])).tools is None


@pytest.mark.parametrize("tools", [5, "x", b"x", {"name": "f"}, [3], [{}], [{"name": 3}], iter([4]), True])
def test_senseless_tools(model, tools):
    with pytest.raises(ConfigError, match="tool"):
        model.chat(tools=tools)


@pytest.mark.parametrize("images", ["a.png", b"\x89PNG", {"a": 1}, 5, None, np.zeros((4, 4, 3), np.uint8)])
def test_one_picture_is_no_list(chat, images):
    with pytest.raises(ConfigError, match=r"images is a \w+, accepted: a list, even for one file"):
        chat.send("x", images=images)


class TestCallables:
    """Logits processors and samplers of one's own."""

    def test_a_processor_sees_the_models_logits_and_all_ids(self, chat, bundle):
        seen = []

        def note(logits, token_ids):
            seen.append((logits.copy(), list(token_ids)))
            return logits

        result = chat.send("hello", config=SHORT, logits_processors=[note]).result
        assert [ids for _, ids in seen] == [
            [*result.prompt_token_ids, *result.token_ids[:count]] for count in range(8)
        ]
        assert all(logits.shape == (512,) and logits.dtype == np.float32 for logits, _ in seen)
        assert [int(logits.argmax()) for logits, _ in seen] == list(result.token_ids)

    def test_processors_apply_in_their_order_before_the_settings(self, chat):
        def only(*allowed):
            def process(logits, _):
                kept = np.full_like(logits, -np.inf)
                kept[list(allowed)] = logits[list(allowed)]
                return kept

            return process

        processors = (only(200, 201, 202), only(201, 300))
        result = chat.send(
            "hello", max_new_tokens=4, temperature=1.5, top_k=7, seed=1, logits_processors=processors
        ).result
        assert result.token_ids == (201,) * 4

    def test_a_sampler_has_the_last_word(self, chat):
        kept = []

        def second_best(logits):
            kept.append(int((logits > -np.inf).sum()))
            return np.argsort(logits)[-2]  # a numpy integer

        result = chat.send("hello", max_new_tokens=4, temperature=1.0, top_k=3, sampler=second_best).result
        assert (len(result.token_ids), kept) == (4, [3] * 4)

    def test_a_placeholder_is_never_among_the_choices(self, chat):
        def prefer_pictures(logits, _):
            logits[:] = 0.0
            logits[1] = 100.0
            return logits

        assert 1 not in chat.send("hello", config=SHORT, logits_processors=[prefer_pictures]).result.token_ids

    @settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(seed=st.integers(0, 1 << 30), temperature=st.sampled_from([0.0, 0.8]))
    def test_answers_do_not_depend_on_speculation(self, model, seed, temperature):
        """Each is called once for each token, in order: so a processor with a state is the same, too."""

        def answer(speculation: bool):
            rng, calls = np.random.default_rng(seed), []

            def stateful(logits, token_ids):
                calls.append(len(token_ids))
                logits[rng.integers(12, 512, 400)] -= 5.0
                return logits

            result = model.generator.stream(
                [Message("user", "the fox, the fox, the fox")],
                config=GenerationConfig(40, temperature=temperature, seed=seed, speculation=speculation),
                logits_processors=[stateful],
            ).result
            return result.token_ids, calls

        assert answer(True) == answer(False)

    @pytest.mark.parametrize(
        ("processor", "expected"),
        [
            (lambda logits, _: None, "a logits processor returned an array of shape"),
            (lambda logits, _: "x", "a logits processor returned a str"),
            (lambda logits, _: logits[:5], r"shape \[5\], accepted: float32 logits \[512\]"),
            (lambda logits, _: logits * np.nan, "the logits are no numbers after the request's logits"),
            (lambda logits, _: logits - np.inf, "the logits are -inf for every id after"),
            (lambda logits, _: logits + np.inf, "the logits are infinite after"),
        ],
    )
    def test_what_a_processor_must_not_return(self, chat, processor, expected):
        before = chat.messages
        with np.errstate(all="ignore"), pytest.raises(ConfigError, match=expected):
            chat.send("hello", config=SHORT, logits_processors=[processor]).text()
        assert chat.messages == before
        assert chat.send("hello", config=SHORT).result.usage.new_tokens == 8

    @pytest.mark.parametrize("returned", [None, "x", 1.5, -1, 512, 1, np.array([3, 4])])
    def test_what_a_sampler_must_not_return(self, chat, returned):
        with pytest.raises(ConfigError, match=r"the sampler returned .*, accepted: an id from 0 to 511"):
            chat.send("hello", config=SHORT, sampler=lambda logits: returned).text()
        assert chat.messages == ()

    def test_an_error_of_ones_own_passes_through(self, chat):
        def fail(logits, _):
            raise LookupError("mine")

        with pytest.raises(LookupError, match="mine"):
            chat.send("hello", logits_processors=[fail]).text()
        assert (chat.messages, chat.generator.pool.num_busy) == ((), 0)

    @pytest.mark.parametrize(
        ("arguments", "expected"),
        [
            (
                {"logits_processors": lambda logits, _: logits},
                "logits_processors is a function, accepted: a list",
            ),
            ({"logits_processors": [5]}, "a logits processor is a int, accepted: a callable"),
            ({"logits_processors": 5}, "logits_processors is a int"),
            ({"sampler": 5}, "sampler is a int, accepted: a callable or None"),
        ],
    )
    def test_what_cannot_be_called(self, chat, arguments, expected):
        with pytest.raises(ConfigError, match=expected):
            chat.send("hello", **arguments)


class TestHostSettings:
    """`numpy.seterr(all="raise")` in the host."""

    @pytest.fixture(autouse=True)
    def raising(self):
        with np.errstate(all="raise"):
            yield

    @pytest.mark.parametrize(
        "settings",
        [
            {},
            {"temperature": 1e-5, "seed": 1},
            {
                "temperature": 0.7,
                "top_k": 5,
                "top_p": 0.3,
                "min_p": 0.5,
                "repetition_penalty": 1.3,
                "seed": 2,
            },
            {"temperature": 1000.0, "top_p": 0.9, "seed": 3},
        ],
    )
    def test_answers_are_the_same(self, model, photo, clip, settings):
        expected = None
        for mode in ("ignore", "raise"):
            model.generator.pool.clear()
            model.generator.encoder.cache.clear()
            with np.errstate(all=mode):
                reply = model.chat().send("x", images=[photo], audio=[clip], max_new_tokens=12, **settings)
                expected = expected or reply.result.token_ids
                assert reply.result.token_ids == expected

    def test_counting_and_transcribing(self, model, photo, clip):
        assert model.count_tokens("x", images=[photo], audio=[clip]).images == (53,)
        model.transcribe(clip, config=SHORT)

    def test_extreme_logits(self, chat):
        def extreme(logits, _):
            logits[:] = -3e38
            logits[20], logits[21] = 3e38, 1e-45
            return logits

        config = GenerationConfig(4, temperature=0.01, top_p=0.99, min_p=0.1, repetition_penalty=1.5, seed=1)
        result = chat.send("x", config=config, logits_processors=[extreme]).result
        assert result.token_ids == (20,) * 4


class TestClosing:
    @pytest.fixture
    def model(self, bundle):
        return phirt.load(bundle, threads=1)

    def test_a_block_closes(self, bundle):
        with phirt.load(bundle, threads=1) as model:
            chat = model.chat()
            chat.send("hello", config=SHORT).text()
        assert "closed" in repr(model)
        model.close()
        for act in (model.chat, lambda: chat.send("x"), lambda: model.count_tokens("x"), chat.fork):
            with pytest.raises(ClosedError, match="this model was closed; load it again"):
                act()
        assert [message.role for message in chat.messages] == ["user", "assistant"]

    def test_every_way_in_is_closed(self, model, clip, photo, tmp_path):
        chat = model.chat()
        chat.send("hello", config=SHORT).text()
        chat.save(tmp_path / "talk")
        model.close()
        generator = model.generator
        for act in (
            model.__enter__,
            lambda: model.load_chat(tmp_path / "talk"),
            lambda: model.transcribe(clip),
            lambda: chat.save(tmp_path / "talk"),
            lambda: generator.stream([Message("user", "x")]),
            lambda: generator.message("x", images=[photo]),
            lambda: generator.prepare_media([photo], []),
            generator.new_engine,
        ):
            with pytest.raises(ClosedError):
                act()

    def test_an_open_answer_fails_at_its_next_step(self, model):
        read, unread = (model.chat().send("talk", max_new_tokens=100) for _ in range(2))
        next(read)
        model.close()
        for reply in (read, unread):
            with pytest.raises(ClosedError):
                reply.text()
        assert model.generator.pool.num_busy == 0

    def test_memory_is_given_back(self, model, photo):
        model.chat().send("see", images=[photo], config=SHORT).text()
        assert model.generator.encoder.open_graphs and model.generator.pool.nbytes
        model.close()
        assert (model.generator.encoder.open_graphs, model.generator.pool.nbytes) == ((), 0)


def test_reprs_say_what_one_wants_to_know(model):
    chat = model.chat(system="be kind")
    assert repr(model) == "<phirt.Model 'tiny': text, image, audio; context 1024>"
    assert repr(chat) == "<phirt.Chat with 'tiny': no turns>"
    reply = chat.send("hello", config=SHORT)
    assert repr(reply) == "<phirt.Reply not begun: ''>"
    next(reply)
    assert repr(reply).startswith("<phirt.Reply half-read: ")
    result = reply.result
    assert repr(reply).startswith("<phirt.Reply length: ")
    assert repr(chat) == "<phirt.Chat with 'tiny': 2 turns, the last by assistant>"
    assert "token_ids" not in repr(result) and repr(result.text) in repr(result)
    assert repr(model.chat().asend("x")) == "<phirt.AsyncReply not begun>"


def test_notebooks_show_what_was_said_and_interpret_nothing(model):
    chat = model.chat(system="<b>kind</b>")
    result = chat.send("<script>alert(1)</script> & more", config=SHORT).result
    shown = chat._repr_html_()
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; more" in shown and "<script" not in shown
    assert "&lt;b&gt;kind" in shown
    result = dataclasses.replace(result, text="<img src=x onerror=alert(1)>")
    assert "<img" not in result._repr_html_() and "&lt;img" in result._repr_html_()
