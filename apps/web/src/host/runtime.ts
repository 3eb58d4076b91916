/**
 * What this library needs of onnxruntime, by the interface that onnxruntime-web, -node and -react-native share.
 *
 * Knows types only: which of them runs, and how it opens a graph, is handed in.
 */
import type {
  InferenceSession,
  InferenceSessionFactory,
  Tensor,
  TensorConstructor,
} from "onnxruntime-common";
import { asPhirtError } from "./errors.js";
import type { PackageFiles } from "./files.js";
import type { GraphSpec } from "./graphs.js";

/** `import * as ort from "onnxruntime-…"` is one. */
export interface Onnxruntime {
  readonly InferenceSession: InferenceSessionFactory;
  readonly Tensor: TensorConstructor;
}

/**
 * Where keys and values lie between steps: in arrays that a run reads and writes in place, or in the tensors that the
 * last run has given, on the processor or on a GPU.
 */
export type CachePlace = "in place" | "returned";

export interface Runtime {
  readonly ort: Onnxruntime;
  readonly cache: CachePlace;
  /** A session of the graph; outputs of these names stay where the provider computes, as far as it has such a place. */
  open(graph: GraphSpec, files: PackageFiles, resident: readonly string[]): Promise<InferenceSession>;
}

export type Feeds = Record<string, Tensor>;
export type Outputs = Readonly<Record<string, Tensor>>;

/** A run whose failure is one of our errors. */
export async function run(
  session: InferenceSession,
  feeds: Feeds,
  fetches: Readonly<Record<string, Tensor | null>>,
  doing: string,
): Promise<Outputs> {
  try {
    return (await session.run(feeds, fetches)) as Outputs;
  } catch (error) {
    throw asPhirtError(error, doing);
  }
}

/** A whole number as the tensors that graphs take. */
export function int64(ort: Onnxruntime, values: readonly number[]): Tensor {
  return new ort.Tensor("int64", BigInt64Array.from(values, BigInt), [values.length]);
}

export function int32(ort: Onnxruntime, value: number): Tensor {
  return new ort.Tensor("int32", Int32Array.of(value), [1]);
}
