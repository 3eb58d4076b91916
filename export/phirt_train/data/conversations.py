"""Conversations as token ids with a loss mask, by the chat template that the runtime will prompt with.

The prompt before each answer has the very ids that `phirt.prompt.chat_template.ChatTemplate` gives the
runtime for it, and an answer those of its content, so that a model is asked as it was taught. Learnt are the
answers and the token that ends each.

Knows the tokenizer, the template and records. Knows nothing of files or batches; a picture or a recording is
one placeholder here, which stands for all the rows of its features.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from tokenizers import Tokenizer as FastTokenizer

from phirt.bundle.manifest import Modality
from phirt.errors import BundleError, ConfigError
from phirt.prompt.chat_template import ChatTemplate, Encoded
from phirt.prompt.messages import Media, Message
from phirt.prompt.tokenizer import Tokenizer
from phirt.prompt.tools import VISIBLE_TOKENS, Tools
from phirt_export.encoders import tower_plans
from phirt_export.reference import ModelConfig
from phirt_train.data.answers import answer_ids
from phirt_train.data.records import Conversation, TrainingMessage


@dataclasses.dataclass(frozen=True)
class MediaRef:
    """One picture or recording: where its placeholder is, and its path as the record has it."""

    position: int
    modality: Modality
    path: str


@dataclasses.dataclass(frozen=True)
class EncodedConversation:
    """Token ids, and for each whether it is learnt; one placeholder for each of the media."""

    token_ids: tuple[int, ...]
    loss_mask: tuple[bool, ...]
    media: tuple[MediaRef, ...] = ()


class ConversationEncoder:
    """Makes token ids of texts and conversations for one model, its tokenizer and its chat template.

    Raises:
        ConfigError: tokenizer and template cannot serve the runtime.
    """

    def __init__(self, tokenizer: Path, template: str, model: ModelConfig) -> None:
        plans = tower_plans(model)
        self._encoder_of: Mapping[Modality, str] = {plan.spec.modality: plan.name for plan in plans}
        self._ends = frozenset(model.tokens.eos)
        self.end_of_text = model.tokens.bos if model.tokens.bos in model.tokens.eos else model.tokens.eos[0]
        placeholders = {plan.name: plan.spec.placeholder for plan in plans}
        try:
            self._tokenizer = Tokenizer(tokenizer, model.decoder.vocab_size, VISIBLE_TOKENS)
            self._template = ChatTemplate(template, self._tokenizer, model.tokens, placeholders)
        except BundleError as error:
            raise ConfigError(f"no bundle could be made of this recipe: {error}") from error
        # Names what ids depend on: other ids come from another tokenizer, template or model.
        facts = repr((template, model.tokens, placeholders)).encode()
        self.identity = hashlib.sha256(tokenizer.read_bytes() + facts).hexdigest()
        # Encodes many texts at once; as in the runtime, no text yields a control token.
        self._fast = FastTokenizer.from_file(str(tokenizer))
        self._fast.encode_special_tokens = True

    def encode_documents(self, texts: Sequence[str]) -> list[EncodedConversation]:
        """Texts that are learnt whole, each with the token that ends a text."""
        encoded = self._fast.encode_batch_fast(list(texts), add_special_tokens=False)
        return [
            EncodedConversation((*one.ids, self.end_of_text), (True,) * (len(one.ids) + 1)) for one in encoded
        ]

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of ids."""
        return self._tokenizer.decode(token_ids)

    def encode(self, conversation: Conversation) -> EncodedConversation:
        """The ids of a conversation up to the end of its last answer.

        Raises:
            ConfigError: the model does not take its media, or the template cannot render it so that it can be
                learnt.
        """
        offered = Tools.of(conversation.tools)
        tools = None if offered is None else offered.json
        turns = conversation.messages
        while turns[-1].role != "assistant":
            turns = turns[:-1]
        messages: list[Message] = []
        if tools is not None and turns[0].role != "system":
            messages.append(Message("system", ""))  # a template writes tools beside a system message
        answers: list[tuple[list[int], tuple[int, ...]]] = []
        for turn in turns:
            if turn.role == "assistant":
                prompt = self._render(messages, tools)
                answers.append((_ids(prompt), answer_ids(self._tokenizer, turn)))
                messages.append(Message("assistant", "", token_ids=answers[-1][1]))
            else:
                messages.append(self._message(turn))
        whole = self._render(messages, tools)
        token_ids = _ids(whole)
        loss_mask, end = [False] * len(token_ids), 0
        for prompt_ids, answer in answers:
            begin, end = len(prompt_ids), len(prompt_ids) + len(answer)
            self._check_answer(token_ids, prompt_ids, answer)
            loss_mask[begin : end + 1] = [True] * (end + 1 - begin)  # and the token that ends it
        media = tuple(MediaRef(place, item.modality, item.key) for place, item in whole.media)
        return EncodedConversation(tuple(token_ids[: end + 1]), tuple(loss_mask[: end + 1]), media)

    def _render(self, messages: Sequence[Message], tools: str | None) -> Encoded:
        try:
            return self._template.encode(messages, tools)
        except BundleError as error:
            raise ConfigError(f"the recipe's chat template cannot render it: {error}") from error

    def _message(self, turn: TrainingMessage) -> Message:
        role = self._template.tool_role if turn.role == "tool" else turn.role
        named: list[tuple[Modality, str]] = [("image", path) for path in turn.images]
        named += [("audio", path) for path in turn.audio]
        media = []
        for modality, path in named:
            if modality not in self._encoder_of:
                raise ConfigError(f"{path} is of modality {modality}, which the recipe's model does not take")
            media.append(Media(self._encoder_of[modality], modality, path, 1, None))
        return Message(role, turn.content, tuple(media))

    def _check_answer(self, token_ids: list[int], prompt: list[int], answer: tuple[int, ...]) -> None:
        """Refuses what the runtime would not prompt with, and answers that no token ends."""
        end = len(prompt) + len(answer)
        if token_ids[: len(prompt)] != prompt or tuple(token_ids[len(prompt) : end]) != answer:
            raise ConfigError(
                "the recipe's chat template writes what comes before an answer otherwise once the answer is "
                "there, so that the model would be asked as it was not taught; use a template that only adds"
            )
        if end >= len(token_ids) or token_ids[end] not in self._ends:
            raise ConfigError(
                "the recipe's chat template puts no token behind an answer that ends it; name the token that "
                "it writes there among 'eos', or end answers with one of those"
            )


def _ids(encoded: Encoded) -> list[int]:
    found: list[int] = encoded.ids.tolist()
    return found
