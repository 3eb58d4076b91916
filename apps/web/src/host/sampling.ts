/**
 * From logits to the next id, in the order of phirt/generate/sampling.py: penalty, temperature, top-k, top-p, min-p.
 *
 * Knows numbers only. Draws come from a generator of its own (SplitMix64), the same as in phirt's library for apps, so
 * that a seed gives the same answer there and here, though not that of Python's phirt.
 */
import { ArgumentError, PackageError } from "./errors.js";

export interface GenerationConfig {
  readonly maxNewTokens: number;
  /** 0: always the best token. */
  readonly temperature: number;
  /** 0: all. */
  readonly topK: number;
  /** 1: all. */
  readonly topP: number;
  /** 0: all. */
  readonly minP: number;
  /** 1: none. */
  readonly repetitionPenalty: number;
  /** Of the draws; 0: another one each time. */
  readonly seed: number;
}

const IDS = 2 ** 21;
const LEAST_TEMPERATURE = 1e-6;

/** Throws ArgumentError naming the setting that is out of range. */
export function checkConfig(config: GenerationConfig): void {
  const ranges: readonly [keyof GenerationConfig, number, number][] = [
    ["maxNewTokens", 1, 1 << 24],
    ["temperature", 0, 1000],
    ["topK", 0, 1 << 22],
    ["topP", Number.MIN_VALUE, 1],
    ["minP", 0, 1],
    ["repetitionPenalty", 0.01, 100],
    ["seed", 0, Number.MAX_SAFE_INTEGER],
  ];
  const whole = new Set(["maxNewTokens", "topK", "seed"]);
  for (const [name, low, high] of ranges) {
    const value: unknown = config[name];
    const fits = typeof value === "number" && value >= low && value <= high;
    if (!fits || (whole.has(name) && !Number.isSafeInteger(value))) {
      const kind = whole.has(name) ? "a whole number" : "a number";
      const range = name === "topP" ? "above 0 up to 1" : `from ${low} to ${high}`;
      throw new ArgumentError(`${name} is ${String(value)}, accepted: ${kind} ${range}`);
    }
  }
}

export class Sampler {
  private readonly seen: Uint8Array;
  private state: bigint;
  private readonly temperature: number;
  private readonly topP: number;
  private readonly minP: number;
  private readonly penalty: number;

  /** `suppressed` ids are never chosen. */
  constructor(
    private readonly config: GenerationConfig,
    vocabSize: number,
    private readonly suppressed: readonly number[],
  ) {
    this.seen = new Uint8Array(vocabSize);
    this.temperature = Math.max(Math.fround(config.temperature), Math.fround(LEAST_TEMPERATURE));
    this.topP = Math.fround(config.topP);
    this.minP = Math.fround(config.minP);
    this.penalty = Math.fround(config.repetitionPenalty);
    this.state = BigInt(config.seed || 1 + Math.trunc(Math.random() * (Number.MAX_SAFE_INTEGER - 1)));
  }

  hasOccurred(id: number): void {
    this.seen[id] = 1;
  }

  /** The next id, which has then occurred. */
  choose(logits: Float32Array): number {
    const scores = Float32Array.from(logits);
    for (const id of this.suppressed) scores[id] = Number.NEGATIVE_INFINITY;
    if (this.penalty !== 1) {
      for (let id = 0; id < scores.length; ++id) {
        if (this.seen[id])
          scores[id] = scores[id] > 0 ? scores[id] / this.penalty : scores[id] * this.penalty;
      }
    }
    let best = 0;
    let hasNumbers = true;
    for (let id = 0; id < scores.length; ++id) {
      if (scores[id] > scores[best]) best = id;
      hasNumbers &&= !Number.isNaN(scores[id]);
    }
    if (!hasNumbers || !Number.isFinite(scores[best])) {
      throw new PackageError("the model's scores are no numbers; fetch a fresh copy of the package");
    }
    const id = this.config.temperature === 0 ? best : this.draw(scores, scores[best]);
    this.hasOccurred(id);
    return id;
  }

  private draw(scores: Float32Array, best: number): number {
    for (let id = 0; id < scores.length; ++id) {
      scores[id] = Math.fround(scores[id] - best) / this.temperature;
    }
    const order = descending(scores);
    let kept = this.config.topK > 0 ? Math.min(order.length, this.config.topK) : order.length;
    const weights = Float64Array.from({ length: kept }, (_, at) => Math.exp(scores[order[at]]));
    if (this.topP < 1) {
      const wanted = this.topP * sum(weights, kept);
      let [reached, count] = [0, 0];
      while (count < kept && reached < wanted) reached += weights[count++];
      kept = Math.max(count, 1);
    }
    if (this.minP > 0) {
      let count = 1;
      while (count < kept && weights[count] >= this.minP * weights[0]) count += 1;
      kept = count;
    }
    let left = this.uniform() * sum(weights, kept);
    let at = 0;
    while (at + 1 < kept && left >= weights[at]) left -= weights[at++];
    return order[at];
  }

  private uniform(): number {
    const wrap = (value: bigint) => BigInt.asUintN(64, value);
    this.state = wrap(this.state + 0x9e3779b97f4a7c15n);
    let mixed = this.state;
    mixed = wrap((mixed ^ (mixed >> 30n)) * 0xbf58476d1ce4e5b9n);
    mixed = wrap((mixed ^ (mixed >> 27n)) * 0x94d049bb133111ebn);
    mixed ^= mixed >> 31n;
    return Number(mixed >> 11n) * 2 ** -53;
  }
}

function sum(weights: Float64Array, count: number): number {
  let total = 0;
  for (let at = 0; at < count; ++at) total += weights[at];
  return total;
}

/** Ids by falling score, of equals the lowest first: sorted as numbers, which have a score's order and its id in them. */
function descending(scores: Float32Array): Int32Array {
  const bits = new Int32Array(scores.buffer, scores.byteOffset, scores.length);
  const keys = new Float64Array(scores.length);
  for (let id = 0; id < keys.length; ++id) {
    // Of floats that are not above zero, bits grow as values fall; both zeros are equal.
    const fallen = scores[id] === 0 ? 0 : bits[id] & 0x7fffffff;
    keys[id] = fallen * IDS + id;
  }
  keys.sort();
  return Int32Array.from(keys, (key) => key % IDS);
}
