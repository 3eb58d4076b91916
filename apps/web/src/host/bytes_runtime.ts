/**
 * Sessions of graphs that are handed over as bytes, weights beside them: onnxruntime-web, by WebAssembly or WebGPU.
 */
import type { InferenceSession } from "onnxruntime-common";
import { asPhirtError } from "./errors.js";
import type { Onnxruntime, Runtime } from "./runtime.js";

export interface BytesRuntimeOptions {
  readonly provider: "wasm" | "webgpu";
  /** For each session, beside what follows from the provider. */
  readonly session?: InferenceSession.SessionOptions;
}

export function bytesRuntime(ort: Onnxruntime, options: BytesRuntimeOptions): Runtime {
  return {
    ort,
    cache: "returned",
    async open(graph, files, resident) {
      // onnxruntime-web 1.30 has no int8 among the types of what stays on a GPU: such outputs come back each time.
      const floats = graph.outputs.filter((one) => resident.includes(one.name) && one.dtype !== "int8");
      const onGpu = options.provider === "webgpu" && floats.length > 0;
      try {
        const externalData = [];
        for (const path of graph.data) externalData.push({ path, data: await files.read(path) });
        return await ort.InferenceSession.create(await files.read(graph.file), {
          ...options.session,
          executionProviders: [options.provider],
          externalData,
          ...(onGpu
            ? { preferredOutputLocation: Object.fromEntries(floats.map(({ name }) => [name, "gpu-buffer"])) }
            : {}),
        });
      } catch (error) {
        throw asPhirtError(error, `opening ${graph.file}`);
      }
    },
  };
}
