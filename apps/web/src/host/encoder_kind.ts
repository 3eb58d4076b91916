/**
 * What an encoder kind is: from a picture or samples to what an encoder's graph takes.
 *
 * Knows no kind.
 */
import { MediaError } from "./errors.js";
import type { Dtype } from "./graphs.js";
import type { Picture } from "./picture.js";

/** An input of a graph. */
export interface GraphInput {
  readonly dtype: Extract<Dtype, "float32" | "int64" | "bool">;
  readonly shape: readonly number[];
  readonly data: Float32Array | BigInt64Array | Uint8Array;
}

/**
 * One picture or recording, ready for its encoder: the graph is run once for each of `runs`, and `numTokens` rows of
 * what it gives one after the other are features.
 */
export interface Prepared {
  readonly numTokens: number;
  readonly runs: readonly Readonly<Record<string, GraphInput>>[];
}

/** How closely a picture is looked at, where the model can choose. */
export type Detail = "low" | "auto" | "high";

export interface ImageKind {
  prepare(picture: Picture, detail: Detail): Prepared;
}

export interface AudioKind {
  /** The rates that are taken as they are; another one is resampled to the first. */
  readonly rates: readonly number[];
  prepare(samples: Float32Array, rate: number): Prepared;
}

/** Throws MediaError, which names the size. */
export function refusePicture(picture: { width: number; height: number }, why: string): never {
  throw new MediaError(`the picture is ${picture.width} x ${picture.height} pixels${why}`);
}
