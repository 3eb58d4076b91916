/**
 * Parts of the host for tests: `node build/checks/parts.js` reads jobs on stdin, a JSON object a line, and writes what
 * the part makes of each, a line for each.
 *
 *   {"tokenizer": PATH, "vocab": N, "texts": [...]}                ids of each text
 *   {"tokenizer": PATH, "vocab": N, "ids": [[...], ...]}           for each the pieces of the stream
 *   {"resize": FILTER, "size": [w, h], "to": [w, h], "data"}       raw RGB in base64; raw RGB
 *   {"image": KIND, "constants", "size": [w, h], "detail", "data"} prepared inputs
 *   {"audio": KIND, "constants", "channels": N, "rate", "data"}    the same, of interleaved float32
 *   {"resample": [from, to], "data"}                               float32; float32
 *   {"logits": [...], "settings": {...}, "draws": N}               ids that are drawn
 *   {"cache": TYPE, "provider": NAME}                              outputs of that type that stay on a GPU
 *   {"failing": MESSAGE}                                           what a reply says that fails, each time it is read
 *   {"manifest": TEXT}                                             its name
 */
import { readFileSync } from "node:fs";
import { createInterface } from "node:readline";
import { bytesRuntime } from "../host/bytes_runtime.js";
import type { Detail, Prepared } from "../host/encoder_kind.js";
import { openAudioKind, openImageKind } from "../host/encoders.js";
import { Field } from "../host/fields.js";
import { type EncoderSpec, Manifest } from "../host/manifest.js";
import { prepareSamples } from "../host/media.js";
import { type Filter, resize } from "../host/picture.js";
import { Reply, type Result } from "../host/reply.js";
import type { Onnxruntime } from "../host/runtime.js";
import { checkConfig, type GenerationConfig, Sampler } from "../host/sampling.js";
import { mixToMono, resample } from "../host/sound.js";
import { Tokenizer } from "../host/tokenizer.js";

type Job = Record<string, unknown> & { readonly data?: string };

const bytesOf = (job: Job) => Uint8Array.from(Buffer.from(job.data ?? "", "base64"));
const floatsOf = (job: Job) => new Float32Array(bytesOf(job).buffer);
const base64 = (array: ArrayBufferView) =>
  Buffer.from(array.buffer, array.byteOffset, array.byteLength).toString("base64");

function specOf(kind: unknown, constants: unknown): EncoderSpec {
  const graph = { file: "", data: [], inputs: [], outputs: [] };
  const field = Field.parse(JSON.stringify(constants), "constants");
  const named = {
    name: "e",
    kind: String(kind),
    modality: "image" as const,
    placeholder: 0,
    projectors: ["p"],
  };
  return { ...named, graph, constants: field };
}

function shown(prepared: Prepared): unknown {
  const runs = prepared.runs.map((run) =>
    Object.fromEntries(
      Object.entries(run).map(([name, input]) => [name, { shape: input.shape, data: base64(input.data) }]),
    ),
  );
  return { tokens: prepared.numTokens, runs };
}

let known: { path: string; tokenizer: Tokenizer } | null = null;

function tokenizerOf(job: Job): Tokenizer {
  const path = String(job.tokenizer);
  if (known?.path !== path) {
    known = {
      path,
      tokenizer: new Tokenizer(readFileSync(path, "utf8"), "tokenizer.json", Number(job.vocab)),
    };
  }
  return known.tokenizer;
}

function audio(job: Job): Prepared {
  const kind = openAudioKind({ ...specOf(job.audio, job.constants), modality: "audio" });
  const [all, count, rate] = [floatsOf(job), Number(job.channels), Number(job.rate)];
  const channel = (at: number) =>
    Float32Array.from({ length: all.length / count }, (_, index) => all[index * count + at]);
  return prepareSamples(kind, mixToMono(Array.from({ length: count }, (_, at) => channel(at))), rate);
}

function draws(job: Job): number[] {
  const logits = Float32Array.from(job.logits as number[]);
  const defaults = {
    maxNewTokens: 1,
    temperature: 0,
    topK: 0,
    topP: 1,
    minP: 0,
    repetitionPenalty: 1,
    seed: 1,
  };
  const config: GenerationConfig = { ...defaults, ...(job.settings as Partial<GenerationConfig>) };
  checkConfig(config);
  const sampler = new Sampler(config, logits.length, []);
  return Array.from({ length: Number(job.draws) }, () => sampler.choose(logits));
}

async function resident(job: Job): Promise<string[]> {
  const output = { name: "present", dtype: job.cache as "int8", shape: [] };
  let asked: { preferredOutputLocation?: Record<string, string> } = {};
  const create = async (_: unknown, options: typeof asked) => {
    asked = options;
  };
  const ort = { InferenceSession: { create } } as unknown as Onnxruntime;
  const files = { read: async () => new Uint8Array(0), size: async () => 0 };
  const runtime = bytesRuntime(ort, { provider: job.provider as "webgpu" });
  await runtime.open({ file: "", data: [], inputs: [], outputs: [output] }, files, [output.name]);
  return Object.keys(asked.preferredOutputLocation ?? {});
}

async function failures(job: Job): Promise<string[]> {
  // biome-ignore lint/correctness/useYield: it fails before
  async function* pieces(): AsyncGenerator<string, Result> {
    throw new Error(String(job.failing));
  }
  const reply = new Reply(pieces());
  const said = (reading: Promise<unknown>) => reading.then(String, (error: Error) => error.message);
  return [await said(reply.finish()), await said(reply.finish()), await said(reply.text())];
}

function done(job: Job): unknown {
  if (job.texts) return (job.texts as string[]).map((text) => tokenizerOf(job).encode(text));
  if (job.ids) {
    return (job.ids as number[][]).map((ids) => {
      const utf8 = new TextDecoder("utf-8", { ignoreBOM: true });
      return ids.map((id) => utf8.decode(tokenizerOf(job).bytesOf(id), { stream: true }));
    });
  }
  const [width, height] = (job.size ?? []) as number[];
  const picture = { width, height, rgb: bytesOf(job) };
  if (job.resize) {
    const [toWidth, toHeight] = job.to as number[];
    return base64(resize(picture, toWidth, toHeight, job.resize as Filter).rgb);
  }
  if (job.image)
    return shown(openImageKind(specOf(job.image, job.constants)).prepare(picture, job.detail as Detail));
  if (job.audio) return shown(audio(job));
  if (job.resample) return base64(resample(floatsOf(job), ...(job.resample as [number, number])));
  if (job.logits) return draws(job);
  if (job.cache) return resident(job);
  if (job.failing) return failures(job);
  return new Manifest(String(job.manifest)).name;
}

for await (const line of createInterface({ input: process.stdin })) {
  let answer: unknown;
  try {
    answer = await done(JSON.parse(line) as Job);
  } catch (error) {
    answer = { error: (error as Error).name, message: (error as Error).message };
  }
  console.log(JSON.stringify(answer));
}
