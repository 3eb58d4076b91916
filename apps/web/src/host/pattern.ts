/**
 * The part of Oniguruma's regular expressions that byte-level tokenizers are written in, as JavaScript's.
 *
 * Knows alternatives, groups (plain, `(?:`, `(?i:`, `(?=`, `(?!`, `(?>`), classes (nested, negated, `&&`), \p{category},
 * \s \d \S \D, escapes, greedy, lazy and possessive quantifiers. What is not known is refused when a pattern is read,
 * so that no text is ever cut in another way than the tokenizers library cuts it.
 */
import { PackageError, shown } from "./errors.js";

// White space as Unicode has it: JavaScript's own \s lacks U+0085 and has U+FEFF.
export const SPACE = "\\t-\\r \\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000";
const CATEGORIES = new Set(
  "L Lu Ll Lt Lm Lo M Mn Mc Me N Nd Nl No P Pc Pd Ps Pe Pi Pf Po S Sm Sc Sk So Z Zs Zl Zp C Cc Cf Co Cn Cs".split(
    " ",
  ),
);
const MAX_DEPTH = 32;
const MAX_REPEATS = 1000;
const SIMPLE: Readonly<Record<string, number>> = { n: 10, r: 13, t: 9, f: 12, v: 11 };

/** Throws PackageError for a pattern that is broken, or has what is not known. */
export function readPattern(pattern: string): RegExp {
  return new RegExp(new Translator(pattern).translate(), "gv");
}

/** A character as a class has it: one, or what a whole class stands for. */
type Atom = { readonly point: number } | { readonly set: string };

class Translator {
  private at = 0;
  private groups = 0;
  private readonly text: readonly string[];

  constructor(private readonly pattern: string) {
    this.text = [...pattern];
  }

  translate(): string {
    const all = this.choice(false, 0);
    if (this.at < this.text.length) this.refuse("a ')' too many");
    return all;
  }

  private refuse(what: string): never {
    throw new PackageError(
      `tokenizer.json: the pattern ${shown(this.pattern, 200)} has ${what}, which this library does not know; ` +
        "export the package again with this version's phirt",
    );
  }

  private get peek(): string {
    return this.text[this.at] ?? "";
  }

  private next(): string {
    const character = this.text[this.at++];
    if (character === undefined) return this.refuse("an end in the midst of something");
    return character;
  }

  private take(expected: string): boolean {
    const found = this.text.slice(this.at, this.at + expected.length).join("") === expected;
    if (found) this.at += expected.length;
    return found;
  }

  private choice(fold: boolean, depth: number): string {
    if (depth > MAX_DEPTH) this.refuse("too many groups inside each other");
    const parts = [this.sequence(fold, depth)];
    while (this.take("|")) parts.push(this.sequence(fold, depth));
    return parts.join("|");
  }

  private sequence(fold: boolean, depth: number): string {
    let parts = "";
    let folds = fold;
    while (this.peek && this.peek !== "|" && this.peek !== ")") {
      if (this.take("(?i)")) {
        folds = true; // to the end of the group
        continue;
      }
      parts += this.quantified(folds, depth);
    }
    return parts;
  }

  private quantified(fold: boolean, depth: number): string {
    const inner = this.atom(fold, depth);
    const repeat = this.repeat();
    if (!repeat) return inner;
    if (new RegExp(`^(?:${inner})$`, "v").test("")) this.refuse("a repetition of what may be empty");
    const { count, braces } = repeat;
    if (this.take("?")) {
      if (/^\{\d+\}$/.test(count)) this.refuse("a '?' behind an exact number");
      return this.repeated(`${inner}${count}?`);
    }
    if (braces && this.peek === "+" && !count.startsWith("{0")) {
      this.at += 1; // Ruby's syntax: a '+' behind braces repeats what they repeat
      return this.repeated(`(?:${inner}${count})+`);
    }
    const isPossessive = !braces && this.take("+");
    return this.repeated(isPossessive ? this.atomic(`${inner}${count}`) : `${inner}${count}`);
  }

  /** What is repeated, which nothing may repeat once more. */
  private repeated(source: string): string {
    if (this.peek && "*+?{".includes(this.peek)) this.refuse("a repetition of a repetition");
    return source;
  }

  private repeat(): { count: string; braces: boolean } | null {
    for (const count of ["?", "*", "+"]) if (this.take(count)) return { count, braces: false };
    if (!this.take("{")) return null;
    const least = this.peek === "," ? 0 : this.number();
    const bounded = !this.take(",");
    const most = bounded ? least : this.peek === "}" ? null : this.number();
    const wrong = most !== null && (least > most || most > MAX_REPEATS);
    if (!this.take("}") || wrong || least > MAX_REPEATS) this.refuse("a '{'");
    return { count: bounded ? `{${least}}` : `{${least},${most ?? ""}}`, braces: true };
  }

  private number(): number {
    const begin = this.at;
    while (/^[0-9]$/.test(this.peek)) this.at += 1;
    const digits = this.text.slice(begin, this.at).join("");
    if (!digits || digits.length > 4) this.refuse("a '{' without a number");
    return Number(digits);
  }

  private atom(fold: boolean, depth: number): string {
    const character = this.next();
    if (character === "(") return this.group(fold, depth);
    if (character === ".") return "[^\\n]";
    if (character === "[") return this.set(fold, depth);
    if (character === "\\") return this.classOf(this.escape(), fold);
    if ("^$*+?".includes(character)) this.refuse(`'${character}' there`);
    return this.classOf({ point: character.codePointAt(0) as number }, fold);
  }

  private group(fold: boolean, depth: number): string {
    const kinds: readonly [string, string, boolean][] = [
      ["?:", "(?:", fold],
      ["?i:", "(?:", true],
      ["?-i:", "(?:", false],
      ["?=", "(?=", fold],
      ["?!", "(?!", fold],
      ["?>", "", fold],
    ];
    const kind = kinds.find(([start]) => this.take(start));
    if (!kind && this.peek === "?") this.refuse("a group of a kind");
    const [start, opening, folds] = kind ?? ["", "(?:", fold];
    const inner = this.choice(folds, depth + 1);
    if (!this.take(")")) this.refuse("a group without an end");
    return start === "?>" ? this.atomic(inner) : `${opening}${inner})`;
  }

  /** A part that is never gone back into: looked at, remembered, and then read as it was found. */
  private atomic(source: string): string {
    const name = `a${++this.groups}`;
    return `(?:(?=(?<${name}>${source}))\\k<${name}>)`;
  }

  private set(fold: boolean, depth: number): string {
    if (depth > MAX_DEPTH) this.refuse("too many classes inside each other");
    const negated = this.take("^");
    const joined: string[] = [];
    let parts = "";
    for (let begins = true; ; begins = false) {
      if (!this.peek) this.refuse("a class without an end");
      if (this.peek === "]" && !begins) break;
      if (this.take("&&")) {
        joined.push(`[${parts}]`);
        parts = "";
        continue;
      }
      parts += this.member(fold, depth);
    }
    this.at += 1;
    const content = joined.length ? [...joined, `[${parts}]`].join("&&") : parts;
    return negated ? `[^${content}]` : `[${content}]`;
  }

  private member(fold: boolean, depth: number): string {
    const character = this.next();
    if (character === "[") {
      if (this.peek === ":") this.refuse("a POSIX class");
      return this.set(fold, depth + 1);
    }
    const low = character === "\\" ? this.escape() : { point: character.codePointAt(0) as number };
    if ("set" in low) return low.set;
    const isRange = this.peek === "-" && this.at + 1 < this.text.length && this.text[this.at + 1] !== "]";
    if (!isRange) return this.range(low.point, low.point, fold);
    this.at += 1;
    const end = this.next();
    if (end === "[") this.refuse("a class as the end of a range");
    const high = end === "\\" ? this.escape() : { point: end.codePointAt(0) as number };
    if ("set" in high) return this.refuse("a range up to a class");
    if (high.point < low.point) this.refuse("a range that ends before it begins");
    return this.range(low.point, high.point, fold);
  }

  private escape(): Atom {
    const character = this.next();
    if (character === "s") return { set: `[${SPACE}]` };
    if (character === "S") return { set: `[^${SPACE}]` };
    if (character === "d") return { set: "\\p{Nd}" };
    if (character === "D") return { set: "\\P{Nd}" };
    if (character === "p" || character === "P") return { set: this.property(character === "P") };
    const simple = SIMPLE[character];
    if (simple !== undefined) return { point: simple };
    if (character === "x" || character === "u") return { point: this.hex(character === "u") };
    if (/^[A-Za-z0-9]$/.test(character) || character > "\x7f") this.refuse("an escape");
    return { point: character.codePointAt(0) as number };
  }

  private hex(four: boolean): number {
    const braces = !four && this.take("{");
    const most = four ? 4 : braces ? 8 : 2;
    const begin = this.at;
    while (this.at - begin < most && /^[0-9a-fA-F]$/.test(this.peek)) this.at += 1;
    const digits = this.text.slice(begin, this.at).join("");
    const ended = braces ? this.take("}") : digits.length === most;
    const value = Number.parseInt(digits || "0", 16);
    if (!ended || !digits || value > 0x10ffff || (!four && !braces && value > 0x7f))
      this.refuse("an escape by number");
    return value;
  }

  private property(negated: boolean): string {
    let turned = negated;
    let name = "";
    if (this.take("{")) {
      if (this.take("^")) turned = !turned;
      while (this.peek !== "}") name += this.next();
      this.at += 1;
    }
    if (!CATEGORIES.has(name)) this.refuse(`the property ${shown(name, 40)}`);
    return `\\${turned ? "P" : "p"}{${name}}`;
  }

  private classOf(atom: Atom, fold: boolean): string {
    return "set" in atom ? atom.set : `[${this.range(atom.point, atom.point, fold)}]`;
  }

  /** Code points as members of a class. Case is folded for ASCII, with the two other characters that fold to it. */
  private range(low: number, high: number, fold: boolean): string {
    const hex = (point: number) => `\\u{${point.toString(16)}}`;
    let members = low === high ? hex(low) : `${hex(low)}-${hex(high)}`;
    if (!fold) return members;
    if (high >= 0x80) this.refuse("'(?i' around other letters than ASCII's");
    for (let point = low; point <= high; ++point) {
      const letter = String.fromCharCode(point);
      if (!/^[A-Za-z]$/.test(letter)) continue;
      members += hex(point ^ 0x20);
      if (letter.toLowerCase() === "s") members += hex(0x17f);
      if (letter.toLowerCase() === "k") members += hex(0x212a);
    }
    return members;
  }
}
