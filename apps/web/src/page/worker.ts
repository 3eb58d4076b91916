/**
 * The worker of the page: the model lives here, so that the page never waits for it.
 *
 * Knows requests and answers of `protocol`. onnxruntime-web is imported from this page's own origin, the build that the
 * provider needs.
 */
import { bytesRuntime } from "../host/bytes_runtime.js";
import type { Chat } from "../host/chat.js";
import { ArgumentError, asPhirtError, RuntimeError } from "../host/errors.js";
import { checkGolden } from "../host/golden.js";
import { Model } from "../host/model.js";
import type { Onnxruntime } from "../host/runtime.js";
import { type HeldFiles, openPackage } from "./package_files.js";
import type { Answer, OpenOptions, Request } from "./protocol.js";

type OrtWeb = Onnxruntime & { readonly env: { readonly wasm: { wasmPaths?: string; numThreads?: number } } };

const ORT = new URL("../../ort/", import.meta.url).href;
const BUILDS = { wasm: "ort.wasm.bundle.min.mjs", webgpu: "ort.webgpu.bundle.min.mjs" };

const scope = self as unknown as {
  postMessage(message: Answer): void;
  onmessage: ((event: MessageEvent<Request>) => void) | null;
};

interface Opened {
  readonly model: Model;
  readonly files: HeldFiles;
  chat: Chat;
}

let opened: Opened | null = null;
let stopping = new AbortController();
let queue = Promise.resolve();

/** One request after the other, whatever comes meanwhile; opening and stopping end an answer. */
scope.onmessage = ({ data }) => {
  if (data.kind === "stop" || data.kind === "open") stopping.abort();
  if (data.kind === "stop") return;
  queue = queue
    .then(() => handle(data))
    .catch((error: unknown) => {
      const { message } = asPhirtError(error, "this request");
      scope.postMessage({ kind: "error", message });
    });
};

async function handle(request: Exclude<Request, { kind: "stop" }>): Promise<void> {
  if (request.kind === "open") return open(request.options);
  if (!opened) throw new ArgumentError("no model is open; open one first");
  if (request.kind === "reset") return opened.chat.reset();
  stopping = new AbortController();
  const { signal } = stopping;
  if (request.kind === "check") {
    let [identical, all] = [0, 0];
    for await (const report of checkGolden(opened.model, opened.files, undefined, signal)) {
      scope.postMessage({ kind: "case", report });
      identical += Number(report.differences.length === 0);
      all += 1;
    }
    scope.postMessage({ kind: "checked", identical, all });
    return;
  }
  const { text, images, audio, settings } = request;
  const reply = opened.chat.send(text, { ...settings, images, audio, signal });
  for await (const piece of reply) scope.postMessage({ kind: "piece", text: piece });
  scope.postMessage({ kind: "done", result: await reply.finish() });
}

async function open(options: OpenOptions): Promise<void> {
  const begin = performance.now();
  const before = opened;
  opened = null;
  before?.chat.reset(); // keys and values, which may lie on a GPU
  before?.files.release();
  await before?.model.close();
  const files = await openPackage(options.source, (progress) =>
    scope.postMessage({ kind: "progress", progress }),
  );
  let model: Model;
  try {
    const ort = await load(options);
    const runtime = bytesRuntime(ort, { provider: options.provider, session: { logSeverityLevel: 3 } });
    model = await Model.open(files, runtime);
  } catch (error) {
    files.release();
    throw error;
  }
  opened = { model, files, chat: model.chat() };
  const { name, limits } = model.manifest;
  scope.postMessage({
    kind: "ready",
    info: {
      name,
      maxPixels: limits.imagePixels,
      maxSeconds: limits.audioSeconds,
      seconds: (performance.now() - begin) / 1000,
    },
  });
}

async function load(options: OpenOptions): Promise<OrtWeb> {
  const gpu = (navigator as { gpu?: { requestAdapter(): Promise<unknown> } }).gpu;
  if (options.provider === "webgpu" && !(await gpu?.requestAdapter())) {
    throw new RuntimeError("this browser offers no GPU by WebGPU; choose the processor (WebAssembly)");
  }
  const ort = (await import(`${ORT}${BUILDS[options.provider]}`)) as OrtWeb;
  ort.env.wasm.wasmPaths = ORT;
  ort.env.wasm.numThreads = crossOriginIsolated ? options.threads : 1;
  return ort;
}
