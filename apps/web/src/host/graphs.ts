/**
 * What a manifest says of graphs, and whether its decoder is one that this library can drive.
 *
 * Knows names, types and shapes of tensors. Knows nothing of onnxruntime.
 */
import { PackageError } from "./errors.js";
import type { Field } from "./fields.js";

const DTYPES = ["float32", "float16", "int64", "int32", "uint8", "int8", "bool"] as const;
export type Dtype = (typeof DTYPES)[number];

interface TensorSpec {
  readonly name: string;
  readonly dtype: Dtype;
  /** A text for a size that is known at run time. */
  readonly shape: readonly (number | string)[];
}

export interface GraphSpec {
  readonly file: string;
  readonly data: readonly string[];
  readonly inputs: readonly TensorSpec[];
  readonly outputs: readonly TensorSpec[];
}

export interface Geometry {
  readonly numLayers: number;
  readonly numKvHeads: number;
  readonly headDim: number;
  readonly hiddenSize: number;
  readonly vocabSize: number;
  /** Positions of the longest conversation. */
  readonly context: number;
  /** From there on rotary factors are others, where `hasLongRegime` is set. */
  readonly originalContext: number;
  readonly hasLongRegime: boolean;
}

const MAX_TENSORS = 1 << 14;
const MAX_SIZE = 2 ** 45;

export function readGraph(field: Field, listed: (name: Field) => string): GraphSpec {
  return {
    file: listed(field.get("file")),
    data: field.get("data").items(1024).map(listed),
    inputs: readTensors(field.get("inputs")),
    outputs: readTensors(field.get("outputs")),
  };
}

function readTensors(list: Field): TensorSpec[] {
  if (!list.exists) list.refuse("a list of tensors");
  const names = new Set<string>();
  return list.items(MAX_TENSORS).map((one) => {
    const name = one.get("name").text(200);
    if (!name || names.has(name)) one.get("name").refuse("each name once");
    names.add(name);
    const shape = one.get("shape").items(16);
    return {
      name,
      dtype: one.get("dtype").oneOf(DTYPES),
      shape: shape.map((size) => (size.isText ? size.text(200) : size.integer(0, MAX_SIZE))),
    };
  });
}

/** The names of keys and values, layer by layer: what is put in, and what comes out. */
export function cacheNames(numLayers: number): { past: string; present: string }[] {
  return Array.from({ length: numLayers }, (_, layer) =>
    ["key", "value"].map((part) => ({
      past: `past_key_values.${layer}.${part}`,
      present: `present.${layer}.${part}`,
    })),
  ).flat();
}

/** The type of keys and values of a decoder. Throws PackageError for one that is not as the geometry has it. */
export function checkDecoder(decoder: GraphSpec, geometry: Geometry): "float32" | "int8" {
  const [hidden, vocabulary] = [geometry.hiddenSize, geometry.vocabSize];
  const inputs = new Map(decoder.inputs.map((tensor) => [tensor.name, tensor]));
  const outputs = new Map(decoder.outputs.map((tensor) => [tensor.name, tensor]));
  const need = (from: Map<string, TensorSpec>, name: string, dtype: Dtype, shape: (number | null)[]) => {
    const found = from.get(name);
    const fits = found?.dtype === dtype && found.shape.length === shape.length;
    if (!fits || !shape.every((size, axis) => size === null || found.shape[axis] === size)) {
      throw new PackageError(
        `manifest.json: the decoder's '${name}' is missing or not as the geometry has it; export the package again`,
      );
    }
  };
  need(inputs, "input_ids", "int64", [1, null]);
  need(inputs, "media_features", "float32", [null, hidden]);
  for (const name of ["route", "num_logits"]) need(inputs, name, "int64", [1]);
  for (const name of ["seqlens_k", "total_sequence_length"]) need(inputs, name, "int32", [1]);
  need(outputs, "logits", "float32", [1, null, vocabulary]);
  const dtype = inputs.get("past_key_values.0.key")?.dtype === "int8" ? "int8" : "float32";
  const names = cacheNames(geometry.numLayers);
  for (const { past, present } of names) {
    need(inputs, past, dtype, [1, geometry.numKvHeads, null, geometry.headDim]);
    need(outputs, present, dtype, [1, geometry.numKvHeads, null, geometry.headDim]);
  }
  if (inputs.size !== 6 + names.length) {
    throw new PackageError(
      `manifest.json: the decoder has ${inputs.size} inputs, accepted: ${6 + names.length}; update this library`,
    );
  }
  return dtype;
}
