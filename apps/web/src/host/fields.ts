/**
 * Documents of others, read with the place of each value, so that a refusal names it.
 *
 * Knows JSON's kinds and ranges. Knows no document.
 */
import { PackageError, shown } from "./errors.js";

const REMEDY = "export the package again or fetch a fresh copy";

export class Field {
  constructor(
    private readonly value: unknown,
    private readonly place: string,
    private readonly file: string,
  ) {}

  /** The root of a document. Throws PackageError where the text is no JSON. */
  static parse(text: string, file: string): Field {
    try {
      return new Field(JSON.parse(text), "", file);
    } catch (error) {
      throw new PackageError(`${file} is not valid JSON (${shown((error as Error).message)}); ${REMEDY}`);
    }
  }

  get exists(): boolean {
    return this.value !== undefined && this.value !== null;
  }

  get isText(): boolean {
    return typeof this.value === "string";
  }

  get(key: string): Field {
    const place = this.place ? `${this.place}.${key}` : key;
    const isObject = typeof this.value === "object" && this.value !== null && !Array.isArray(this.value);
    if (!isObject && this.exists) this.refuse("an object");
    const members = this.value as Record<string, unknown> | null | undefined;
    const own = members && Object.hasOwn(members, key) ? members[key] : undefined;
    return new Field(own, place, this.file);
  }

  /** Name and value of each member; none where it is absent. */
  members(most = 1 << 20): [string, Field][] {
    if (!this.exists) return [];
    if (typeof this.value !== "object" || Array.isArray(this.value)) this.refuse("an object");
    const names = Object.keys(this.value as object);
    if (names.length > most) this.refuse(`at most ${most} members`);
    return names.map((name) => [name, this.get(name)]);
  }

  /** The values of a list; none where it is absent. */
  items(most = 1 << 22): Field[] {
    if (!this.exists) return [];
    if (!Array.isArray(this.value)) this.refuse("a list");
    const list = this.value as unknown[];
    if (list.length > most) this.refuse(`at most ${most} items`);
    return list.map((item, index) => new Field(item, `${this.place}[${index}]`, this.file));
  }

  text(most = 1 << 16): string {
    if (typeof this.value !== "string") this.refuse("text");
    const text = this.value as string;
    if (text.length > most) this.refuse(`at most ${most} characters`);
    return text;
  }

  oneOf<T extends string>(accepted: readonly T[], absent?: T): T {
    if (!this.exists && absent !== undefined) return absent;
    if (!accepted.includes(this.value as T)) this.refuse(accepted.join(", "));
    return this.value as T;
  }

  integer(low: number, high: number, absent?: number): number {
    if (!this.exists && absent !== undefined) return absent;
    const number = this.value;
    if (!Number.isSafeInteger(number) || (number as number) < low || (number as number) > high) {
      this.refuse(`a whole number from ${low} to ${high}`);
    }
    return number as number;
  }

  real(low: number, high: number, absent?: number): number {
    if (!this.exists && absent !== undefined) return absent;
    const number = this.value;
    if (typeof number !== "number" || !(number >= low && number <= high))
      this.refuse(`a number from ${low} to ${high}`);
    return number as number;
  }

  boolean(absent?: boolean): boolean {
    if (!this.exists && absent !== undefined) return absent;
    if (typeof this.value !== "boolean") this.refuse("true or false");
    return this.value as boolean;
  }

  /** An object's values as they are, for what reads very many. */
  rawMembers(): Readonly<Record<string, unknown>> {
    if (typeof this.value !== "object" || !this.exists || Array.isArray(this.value)) this.refuse("an object");
    return this.value as Record<string, unknown>;
  }

  /** A list's values as they are. */
  rawItems(): readonly unknown[] {
    return Array.isArray(this.value) ? this.value : this.refuse("a list");
  }

  refuse(accepted: string): never {
    const found = this.exists ? `is ${shown(this.value)}` : "is missing";
    throw new PackageError(
      `${this.file}: ${this.place || "the document"} ${found}, accepted: ${accepted}; ${REMEDY}`,
    );
  }
}
