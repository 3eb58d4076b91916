"""The answer to one turn of a chat, in threads and in asyncio.

Knows what a stream of text is. Knows nothing of how the chat keeps it.
"""

from __future__ import annotations

from phirt.generate.text_stream import AsyncTextStream, TextStream


class Reply(TextStream):
    """An answer in the making: iterate it for pieces of text, or ask for its `result`.

    Nothing runs until then. When it ends, finished or cancelled, the answer is part of the chat; should it
    fail, the chat is as it was before the question. A reply that was half read and then dropped counts as
    cancelled. Any thread may read it; each piece is given once.
    """


class AsyncReply(AsyncTextStream):
    """An answer in the making for asyncio: `async for piece in reply`, then `await reply.result()`.

    The question is part of the chat from the first piece on. Cancelling the task that waits for a piece stops
    the answer within a step; what came so far stays in the chat. Until then, while media are read and
    encoded, it leaves the chat as it was. Whoever leaves the loop early calls `cancel` or `aclose`.
    """
