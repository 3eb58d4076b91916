/**
 * Sessions of graphs that lie on a disk: onnxruntime-node (Node, Electron) and onnxruntime-react-native.
 *
 * onnxruntime maps weights from the files itself. In Node keys and values are read and written in place.
 */
import type { InferenceSession } from "onnxruntime-common";
import { asPhirtError } from "./errors.js";
import type { CachePlace, Onnxruntime, Runtime } from "./runtime.js";

export interface PathRuntimeOptions {
  /** Where a file of the package lies. */
  readonly pathOf: (name: string) => string;
  /** "in place" for onnxruntime-node, which writes into tensors that it is given; "returned" (default) for others. */
  readonly cache?: CachePlace;
  /** For each session; `executionProviders` and threads among them. */
  readonly session?: InferenceSession.SessionOptions;
}

export function pathRuntime(ort: Onnxruntime, options: PathRuntimeOptions): Runtime {
  return {
    ort,
    cache: options.cache ?? "returned",
    async open(graph) {
      try {
        return await ort.InferenceSession.create(options.pathOf(graph.file), options.session);
      } catch (error) {
        throw asPhirtError(error, `opening ${graph.file}`);
      }
    },
  };
}
