/** The public names of phirt's host for JavaScript. */

export { bytesRuntime } from "./bytes_runtime.js";
export { Chat, type SendOptions } from "./chat.js";
export type { Detail } from "./encoder_kind.js";
export * from "./errors.js";
export type { PackageFiles } from "./files.js";
export { type CaseReport, checkGolden } from "./golden.js";
export { Manifest } from "./manifest.js";
export { isWav, readPpm, readWav } from "./media_files.js";
export { Model } from "./model.js";
export { pathRuntime } from "./path_runtime.js";
export { type Picture, pictureOfRgba } from "./picture.js";
export { type FinishReason, Reply, type Result } from "./reply.js";
export type { Onnxruntime, Runtime } from "./runtime.js";
export type { GenerationConfig } from "./sampling.js";
export type { Clip } from "./sound.js";
