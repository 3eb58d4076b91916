"""The public names and the modules that they come from: read by type checkers, and when phirt is imported."""

from .chat.chat import Chat as Chat
from .chat.reply import AsyncReply as AsyncReply
from .chat.reply import Reply as Reply
from .embedder import Embedder as Embedder
from .errors import AdapterError as AdapterError
from .errors import BundleError as BundleError
from .errors import ChatBusyError as ChatBusyError
from .errors import ClosedError as ClosedError
from .errors import ConfigError as ConfigError
from .errors import ContextError as ContextError
from .errors import ConversationError as ConversationError
from .errors import MediaError as MediaError
from .errors import OutOfMemoryError as OutOfMemoryError
from .errors import PhirtError as PhirtError
from .errors import ProviderError as ProviderError
from .errors import RequestCancelledError as RequestCancelledError
from .errors import SchemaError as SchemaError
from .generate.cancellation import CancelSignal as CancelSignal
from .generate.engine import Progress as Progress
from .generate.engine_pool import CacheLimits as CacheLimits
from .generate.grammar import Grammar as Grammar
from .generate.json_schema import JsonSchema as JsonSchema
from .generate.results import FinishReason as FinishReason
from .generate.results import Result as Result
from .generate.results import Timings as Timings
from .generate.results import Usage as Usage
from .generate.sampling import GenerationConfig as GenerationConfig
from .generate.sampling import Logits as Logits
from .generate.sampling import LogitsProcessor as LogitsProcessor
from .generate.sampling import Sampler as Sampler
from .generate.text_stream import AsyncTextStream as AsyncTextStream
from .generate.text_stream import TextStream as TextStream
from .generator import Generator as Generator
from .generator import TokenCount as TokenCount
from .model import Model as Model
from .model import load as load
from .prompt.messages import Message as Message
from .prompt.tools import ToolCall as ToolCall
from .runtime.device import devices as devices
from .transcription import Segment as Segment
from .transcription import Transcript as Transcript
from .transcription import Transcription as Transcription
from .transcription import TranscriptionProgress as TranscriptionProgress

__version__: str
