/**
 * The chat template as fixed pieces, from host.json: what stands before the first turn, between turns, at the end.
 *
 * The exporter has found the pieces by looking at what the template itself makes, and compared them with it; where a
 * template cannot be said like this there is no package. Knows pieces of text and control tokens, turns and media.
 */
import { ArgumentError, PackageError } from "./errors.js";
import { Field } from "./fields.js";
import { HOST } from "./manifest.js";
import { SPACE } from "./pattern.js";
import type { Tokenizer } from "./tokenizer.js";

export type Role = "system" | "user" | "assistant";

/** Features of one picture or recording, and where its placeholders stand in the prompt. */
export interface Span {
  readonly start: number;
  /** float32 [count, hidden]; the same object is the same content. */
  readonly rows: Float32Array;
}

export interface Prompt {
  readonly ids: number[];
  readonly spans: Span[];
}

export interface Media {
  readonly placeholder: number;
  readonly numTokens: number;
  readonly rows: Float32Array;
}

export interface Turn {
  readonly role: Role;
  readonly text: string;
  /** Before the text. */
  readonly media: readonly Media[];
  /** Those that an answer was generated with. */
  readonly ids: readonly number[];
}

type Pieces = readonly (string | number)[];

interface Variant {
  /** Whether it is for conversations with media, for those without, or for all. */
  readonly media: boolean | null;
  readonly first: Pieces;
  readonly system: { readonly before: Pieces; readonly behind: Pieces } | null;
  readonly reply: Pieces;
  readonly next: Pieces;
  readonly empty: Pieces;
  readonly answer: Pieces;
}

export class Rendering {
  private readonly variants: readonly Variant[];
  private readonly trims: Readonly<Record<Role, boolean>>;

  /** Throws PackageError for a text that is no host.json, or has pieces that the tokenizer does not know. */
  constructor(
    text: string,
    private readonly tokenizer: Tokenizer,
  ) {
    const root = Field.parse(text, HOST);
    root.get("format").oneOf(["phirt-host"]);
    if (root.get("version").integer(1, 1000) !== 1) root.get("version").refuse("1; update this library");
    const rendering = root.get("rendering");
    this.variants = rendering
      .get("variants")
      .items(2)
      .map((one) => readVariant(one, tokenizer));
    const kinds = this.variants.map((variant) => variant.media);
    const fits = kinds.length === 1 ? kinds[0] === null : kinds.includes(true) && kinds.includes(false);
    if (!fits)
      rendering.get("variants").refuse("one for all conversations, or one with media and one without");
    const trims = rendering.get("trims");
    const isTrimmed = (role: Role) => trims.get(role).boolean(false);
    this.trims = { system: isTrimmed("system"), user: isTrimmed("user"), assistant: isTrimmed("assistant") };
  }

  /**
   * Ids of the conversation up to where the assistant answers, and where each of the media stands. Turns are a system
   * message or none, then questions and answers in turn, a question at the end.
   *
   * Throws ArgumentError for a system message where the model takes none.
   */
  encode(turns: readonly Turn[]): Prompt {
    const writer = new Writer(this.tokenizer);
    const hasMedia = turns.some((turn) => turn.media.length > 0);
    const variant = this.variants.find((one) => one.media === null || one.media === hasMedia) as Variant;
    if (turns[0]?.role !== "system") {
      writer.pieces(variant.first);
    } else if (variant.system) {
      writer.pieces(variant.system.before);
    } else {
      throw new ArgumentError("this model takes no system message; make the chat without one");
    }
    for (const [index, turn] of turns.entries()) this.write(writer, variant, turn, turns[index + 1]);
    writer.flush();
    if (!writer.prompt.ids.length) {
      throw new PackageError(`${HOST}: its rendering makes an empty prompt; export the package again`);
    }
    return writer.prompt;
  }

  private write(writer: Writer, variant: Variant, turn: Turn, next: Turn | undefined): void {
    if (this.isEmpty(turn)) {
      writer.pieces(variant.empty); // the question before it has left out what stands between both
      return;
    }
    const said = this.said(turn);
    for (const item of turn.media) writer.media(item);
    if (turn.role === "assistant" && said === turn.text) {
      writer.ids(turn.ids); // as they were generated, so that what is cached of them stays valid
    } else {
      writer.text(said);
    }
    if (next === undefined) writer.pieces(variant.answer);
    else if (turn.role === "system") writer.pieces(variant.system?.behind ?? []);
    else if (turn.role === "assistant") writer.pieces(variant.next);
    else if (!this.isEmpty(next)) writer.pieces(variant.reply);
  }

  private isEmpty(turn: Turn): boolean {
    return turn.role === "assistant" && this.said(turn) === "";
  }

  /** What was said as a template's `trim` leaves it; white space behind media stands in the middle. */
  private said(turn: Turn): string {
    if (!this.trims[turn.role]) return turn.text;
    const end = turn.text.replace(TRIMMED_END, "");
    return turn.media.length ? end : end.replace(TRIMMED_START, "");
  }
}

// Python's idea of white space has four separators more than Unicode's.
const TRIMMED_START = new RegExp(`^[${SPACE}\\x1c-\\x1f]+`, "v");
const TRIMMED_END = new RegExp(`(?<![${SPACE}\\x1c-\\x1f])[${SPACE}\\x1c-\\x1f]+$`, "v");
const SPACE_START = new RegExp(`^[${SPACE}]+`, "v");
const SPACE_END = new RegExp(`(?<![${SPACE}])[${SPACE}]+$`, "v");

/** Ids of a prompt as they come: text waits until what stands behind it is known, so that neighbours are one piece. */
class Writer {
  readonly prompt: Prompt = { ids: [], spans: [] };
  private waiting = "";
  private stripsNext = false;

  constructor(private readonly tokenizer: Tokenizer) {}

  pieces(pieces: Pieces): void {
    for (const piece of pieces) typeof piece === "string" ? this.text(piece) : this.ids([piece]);
  }

  text(more: string): void {
    const part = this.waiting === "" && this.stripsNext ? more.replace(SPACE_START, "") : more;
    if (part) this.stripsNext = false;
    this.waiting += part;
  }

  ids(ids: readonly number[]): void {
    if (!ids.length) return;
    const first = this.tokenizer.control(ids[0]);
    const last = this.tokenizer.control(ids[ids.length - 1]);
    if (first?.trimsBefore) this.waiting = this.waiting.replace(SPACE_END, "");
    this.flush();
    for (const id of ids) this.prompt.ids.push(id);
    this.stripsNext = last?.trimsAfter ?? false;
  }

  media(item: Media): void {
    this.flush();
    this.prompt.spans.push({ start: this.prompt.ids.length, rows: item.rows });
    for (let row = 0; row < item.numTokens; ++row) this.prompt.ids.push(item.placeholder);
    this.stripsNext = false;
  }

  flush(): void {
    for (const id of this.tokenizer.encode(this.waiting)) this.prompt.ids.push(id);
    this.waiting = "";
  }
}

function readVariant(field: Field, tokenizer: Tokenizer): Variant {
  const pieces = (list: Field): Pieces =>
    list.items(1024).map((piece) => {
      if (piece.isText) return piece.text();
      const id = piece.integer(0, 1 << 22);
      return tokenizer.control(id) ? id : piece.refuse("text, or the id of a control token");
    });
  const system = field.get("system");
  return {
    media: field.get("media").exists ? field.get("media").boolean() : null,
    first: pieces(field.get("first")),
    system: system.exists
      ? { before: pieces(system.get("before")), behind: pieces(system.get("behind")) }
      : null,
    reply: pieces(field.get("reply")),
    next: pieces(field.get("next")),
    empty: pieces(field.get("empty")),
    answer: pieces(field.get("answer")),
  };
}
