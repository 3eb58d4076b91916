/** A package in Node or Electron: `await openFolder(ort, "model")` with `import * as ort from "onnxruntime-node"`. */
import type { InferenceSession } from "onnxruntime-common";
import { Model } from "../host/model.js";
import { pathRuntime } from "../host/path_runtime.js";
import type { Onnxruntime } from "../host/runtime.js";
import { folderFiles } from "./folder.js";

export { folderFiles } from "./folder.js";

/** Opens the package in `folder`. `threads`: 0 for as many as onnxruntime finds good. */
export function openFolder(
  ort: Onnxruntime,
  folder: string,
  options: { threads?: number } = {},
): Promise<Model> {
  const files = folderFiles(folder);
  const session: InferenceSession.SessionOptions = options.threads
    ? { intraOpNumThreads: options.threads }
    : {};
  return Model.open(files, pathRuntime(ort, { pathOf: files.pathOf, cache: "in place", session }));
}
