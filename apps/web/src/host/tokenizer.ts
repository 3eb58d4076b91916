/**
 * Text to ids and back, by a byte-level BPE's tokenizer.json.
 *
 * Knows that file. Control tokens are recognised in what a template writes (`control`) and never in what comes from
 * outside: `encode` has no path to one, whatever somebody types.
 */
import { BytePairs } from "./byte_pairs.js";
import { Field } from "./fields.js";
import { readPattern } from "./pattern.js";

// What GPT-2 cuts text by; a ByteLevel step with `use_regex` brings it.
const GPT2 = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";
// Tokens of these names are part of an answer: an app reads tool calls between them.
// biome-ignore format: a list
const VISIBLE = new Set([
  "<|tool_call|>", "<|/tool_call|>", "<tool_call>", "</tool_call>", "[TOOL_CALLS]", "<|python_tag|>",
]);

export interface Control {
  readonly name: string;
  readonly special: boolean;
  readonly trimsBefore: boolean;
  readonly trimsAfter: boolean;
}

/** One step of the pre-tokenizer: pieces of text, each cut into smaller ones. */
type Cut = (piece: string) => string[];

export class Tokenizer {
  private readonly controls = new Map<number, Control>();
  private readonly cuts: Cut[] = [];
  private isByteLevel = false;
  private readonly ignoreMerges: boolean;
  private readonly names: (string | undefined)[] = []; // by id, in the alphabet of bytes
  private readonly ids = new Map<string, number>();
  private readonly ofByte: Int32Array;
  private readonly pairs = new BytePairs();

  /** Throws PackageError for a tokenizer that is damaged, of another kind, or has ids from `vocabSize` on. */
  constructor(text: string, file: string, vocabSize: number) {
    const root = Field.parse(text, file);
    for (const key of ["normalizer", "truncation", "padding"]) {
      if (root.get(key).exists) root.get(key).refuse("none: text as it is");
    }
    for (const token of root.get("added_tokens").items()) {
      const name = token.get("content").text(4096);
      if (!name) token.get("content").refuse("a name");
      this.controls.set(token.get("id").integer(0, vocabSize - 1), {
        name,
        special: token.get("special").boolean(false),
        trimsBefore: token.get("lstrip").boolean(false),
        trimsAfter: token.get("rstrip").boolean(false),
      });
    }
    this.readSteps(root.get("pre_tokenizer"));
    if (!this.isByteLevel) root.get("pre_tokenizer").refuse("one with a ByteLevel step");
    root.get("decoder").get("type").oneOf(["ByteLevel"]);
    const model = root.get("model");
    model.get("type").oneOf(["BPE"], "BPE");
    for (const key of ["continuing_subword_prefix", "end_of_word_suffix"]) {
      if (model.get(key).exists) model.get(key).oneOf([""]);
    }
    model.get("dropout").real(0, 0, 0);
    if (model.get("byte_fallback").boolean(false)) model.get("byte_fallback").refuse("false");
    this.ignoreMerges = model.get("ignore_merges").boolean(false);
    this.readVocabulary(model.get("vocab"), vocabSize);
    this.ofByte = Int32Array.from(ALPHABET, (character) => this.ids.get(character) ?? -1);
    this.readMerges(model.get("merges"));
  }

  /** Ids of text from outside. */
  encode(text: string): number[] {
    let pieces = text ? [wellFormed(text)] : [];
    for (const cut of this.cuts) pieces = pieces.flatMap(cut);
    const ids: number[] = [];
    for (const piece of pieces) for (const id of this.encodeWord(piece)) ids.push(id);
    return ids;
  }

  /** The bytes that an id stands for in an answer; none for a control token that stays invisible. */
  bytesOf(id: number): Uint8Array {
    const control = this.controls.get(id);
    if (control !== undefined) {
      return control.special && !VISIBLE.has(control.name) ? NO_BYTES : UTF8.encode(control.name);
    }
    const known = [...(this.names[id] ?? "")].map((character) => BYTES.get(character));
    return Uint8Array.from(known.filter((byte) => byte !== undefined));
  }

  control(id: number): Control | undefined {
    return this.controls.get(id);
  }

  private encodeWord(word: string): number[] {
    const bytes = UTF8.encode(word);
    if (this.ignoreMerges) {
      const whole = this.ids.get(Array.from(bytes, (byte) => ALPHABET[byte]).join(""));
      if (whole !== undefined) return [whole];
    }
    const symbols: number[] = [];
    for (const byte of bytes) if (this.ofByte[byte] >= 0) symbols.push(this.ofByte[byte]); // others are left out
    return this.pairs.merge(symbols);
  }

  private readSteps(step: Field, isInner = false): void {
    const type = step.get("type").oneOf(["Sequence", "ByteLevel", "Digits", "Split"]);
    if (type === "Sequence") {
      if (isInner) step.refuse("a step that is no sequence itself");
      for (const one of step.get("pretokenizers").items(32)) this.readSteps(one, true);
      return;
    }
    if (this.isByteLevel) step.refuse("nothing behind a ByteLevel step");
    if (type === "ByteLevel") {
      this.isByteLevel = true;
      if (step.get("add_prefix_space").boolean(true)) step.get("add_prefix_space").refuse("false");
      if (step.get("use_regex").boolean(true)) this.cuts.push(cutBy(readPattern(GPT2), false, false));
    } else if (type === "Digits") {
      const each = step.get("individual_digits").boolean(false);
      this.cuts.push((piece) => piece.match(each ? /\p{N}|\P{N}+/gu : /\p{N}+|\P{N}+/gu) ?? []);
    } else {
      const removes = step.get("behavior").oneOf(["Isolated", "Removed"]) === "Removed";
      const pattern = readPattern(
        step
          .get("pattern")
          .get("Regex")
          .text(1 << 14),
      );
      this.cuts.push(cutBy(pattern, removes, step.get("invert").boolean(false)));
    }
  }

  private readVocabulary(list: Field, vocabSize: number): void {
    const hidden = new Set([...this.controls.values()].map((control) => control.name));
    for (const [name, value] of Object.entries(list.rawMembers())) {
      const id = Number.isSafeInteger(value) ? (value as number) : -1;
      if (id < 0 || id >= vocabSize) list.get(name).refuse(`an id below ${vocabSize}`);
      if (hidden.has(name)) continue;
      if (this.names[id] !== undefined) list.get(name).refuse("an id for one token alone");
      this.names[id] = name;
      this.ids.set(name, id);
    }
  }

  private readMerges(list: Field): void {
    let rank = 0;
    for (const entry of list.rawItems()) {
      if (typeof entry === "string" && entry.startsWith("#version")) continue;
      const space = typeof entry === "string" ? entry.indexOf(" ") : -1;
      const pair = typeof entry === "string" ? [entry.slice(0, space), entry.slice(space + 1)] : entry;
      const [left, right] = Array.isArray(pair) && pair.length === 2 ? (pair as unknown[]) : [];
      const ids = [left, right, `${left}${right}`].map((name) => this.ids.get(name as string));
      const [first, second, both] = ids;
      if (left && right && first !== undefined && second !== undefined && both !== undefined) {
        this.pairs.add(first, second, both, rank++);
      } else {
        list.refuse("pairs of tokens of the vocabulary that make one");
      }
    }
  }
}

const UTF8 = new TextEncoder();
const NO_BYTES = new Uint8Array(0);

/** The characters by which byte-level vocabularies write bytes. */
const ALPHABET: readonly string[] = (() => {
  let other = 256;
  const isPrintable = (byte: number) =>
    (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
  return Array.from({ length: 256 }, (_, byte) => String.fromCharCode(isPrintable(byte) ? byte : other++));
})();
const BYTES: ReadonlyMap<string, number> = new Map(ALPHABET.map((character, byte) => [character, byte]));

/** Text without halves of characters. */
export function wellFormed(text: string): string {
  return text.replace(/\p{Surrogate}/gu, "\ufffd");
}

/** What matches and what lies between are pieces of their own, or what matches (`inverts`: what lies between) goes. */
function cutBy(pattern: RegExp, removes: boolean, inverts: boolean): Cut {
  return (piece) => {
    const pieces: string[] = [];
    const put = (part: string, matches: boolean) => {
      if (part && !(removes && matches !== inverts)) pieces.push(part);
    };
    let done = 0;
    for (const found of piece.matchAll(pattern)) {
      put(piece.slice(done, found.index), false);
      put(found[0], true);
      done = found.index + found[0].length;
    }
    put(piece.slice(done), false);
    return pieces;
  };
}
