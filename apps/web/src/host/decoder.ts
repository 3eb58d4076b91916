/**
 * One sequence on the decoder: what is cached of it, prefill in chunks, one token more.
 *
 * Knows ids, rows of media features and adapters by number. Knows nothing of text. A cached position is valid for one
 * adapter and one rotary regime (LongRoPE has short and long factors): where either changes, all is run again.
 */
import type { InferenceSession, Tensor } from "onnxruntime-common";
import { ContextError } from "./errors.js";
import { KVCache } from "./kv_cache.js";
import type { Manifest } from "./manifest.js";
import type { Prompt, Span } from "./rendering.js";
import { int32, int64, type Runtime, run } from "./runtime.js";

const CHUNK = 128; // what 4-bit kernels are fastest at, and the grain of stopping

/** Throws ContextError where a prompt is longer than the model's context. */
export function requireRoom(length: number, context: number): void {
  if (length > context) {
    throw new ContextError(
      `the conversation needs ${length} tokens, the model's context has ${context}; shorten it, use fewer media, or ` +
        "start a new one",
    );
  }
}

export class Decoder {
  private ids: number[] = [];
  private spans: readonly Span[] = [];
  private adapter = 0;
  private isLong = false;
  private readonly cache: KVCache;

  constructor(
    private readonly session: InferenceSession,
    private readonly runtime: Runtime,
    private readonly manifest: Manifest,
  ) {
    this.cache = new KVCache(runtime.ort, runtime.cache, manifest.cacheDtype, manifest.geometry);
  }

  /** Positions that are cached. */
  get length(): number {
    return this.ids.length;
  }

  forget(): void {
    this.truncate(0);
    this.cache.release();
    this.isLong = false;
  }

  /** How many positions of the prompt need not be run. */
  reusable(prompt: Prompt, adapter: number): number {
    if (adapter !== this.adapter || this.needsLong(prompt.ids.length) !== this.isLong) return 0;
    const most = Math.min(prompt.ids.length - 1, this.ids.length);
    let keep = 0;
    while (keep < most && prompt.ids[keep] === this.ids[keep]) keep += 1;
    // Placeholders look alike: the media under them must be the same, too.
    for (let i = 0; i < Math.max(prompt.spans.length, this.spans.length); ++i) {
      const [ours, theirs] = [this.spans[i] as Span | undefined, prompt.spans[i] as Span | undefined];
      if (ours && theirs && ours.start === theirs.start && ours.rows === theirs.rows) continue;
      return Math.min(keep, ours?.start ?? keep, theirs?.start ?? keep);
    }
    return keep;
  }

  /**
   * Makes the cache hold exactly the prompt, running what it does not hold yet. Returns the logits [vocab] behind it;
   * null where `isStopped` said so between two chunks.
   */
  async prefill(
    prompt: Prompt,
    adapter: number,
    isStopped: () => Promise<boolean>,
  ): Promise<Float32Array | null> {
    const total = prompt.ids.length;
    requireRoom(total, this.manifest.geometry.context);
    const keep = this.reusable(prompt, adapter);
    this.truncate(keep);
    [this.spans, this.adapter, this.isLong] = [prompt.spans, adapter, this.needsLong(total)];
    await this.reserve(total);
    let logits: Float32Array | null = null;
    for (let start = keep; start < total; start += CHUNK) {
      if (await isStopped()) {
        this.truncate(this.ids.length);
        return null;
      }
      const stop = Math.min(start + CHUNK, total);
      logits = await this.run(prompt.ids.slice(start, stop), this.featuresBetween(start, stop));
    }
    return logits;
  }

  /** Appends one id. Logits as above. */
  async decodeStep(id: number, isStopped: () => Promise<boolean>): Promise<Float32Array | null> {
    const total = this.length + 1;
    if (this.needsLong(total) !== this.isLong) {
      // Every cached key was rotated by factors that no longer hold.
      return this.prefill({ ids: [...this.ids, id], spans: [...this.spans] }, this.adapter, isStopped);
    }
    await this.reserve(total);
    return this.run([id], new Float32Array(0));
  }

  private needsLong(total: number): boolean {
    const { hasLongRegime, originalContext } = this.manifest.geometry;
    return hasLongRegime && total > originalContext;
  }

  private truncate(length: number): void {
    this.ids.length = length;
    this.spans = this.spans.filter((span) => span.start < length);
  }

  private async reserve(total: number): Promise<void> {
    try {
      await this.cache.reserve(this.announced(total), this.length);
    } catch (error) {
      this.forget(); // the cache has given up what it held
      throw error;
    }
  }

  /** The graph picks its rotary factors by the total; a chunk of a longer whole announces that. */
  private announced(total: number): number {
    return this.isLong ? Math.max(total, this.manifest.geometry.originalContext + 1) : total;
  }

  private featuresBetween(start: number, stop: number): Float32Array {
    const hidden = this.manifest.geometry.hiddenSize;
    const parts = this.spans.map((span) => {
      const first = Math.max(start, span.start);
      const last = Math.min(stop, span.start + span.rows.length / hidden);
      return span.rows.subarray(
        (first - span.start) * hidden,
        Math.max(last - span.start, first - span.start) * hidden,
      );
    });
    const rows = new Float32Array(parts.reduce((sum, part) => sum + part.length, 0));
    let at = 0;
    for (const part of parts) {
      rows.set(part, at);
      at += part.length;
    }
    return rows;
  }

  private async run(ids: readonly number[], rows: Float32Array): Promise<Float32Array> {
    const { ort } = this.runtime;
    const { hiddenSize, vocabSize } = this.manifest.geometry;
    const stop = this.length + ids.length;
    const feeds: Record<string, Tensor> = {
      input_ids: new ort.Tensor("int64", BigInt64Array.from(ids, BigInt), [1, ids.length]),
      media_features: new ort.Tensor("float32", rows, [rows.length / hiddenSize, hiddenSize]),
      route: int64(ort, [this.adapter]),
      num_logits: int64(ort, [1]),
      seqlens_k: int32(ort, stop - 1),
      total_sequence_length: int32(ort, this.announced(stop)),
    };
    this.cache.feed(feeds);
    const outputs = await run(
      this.session,
      feeds,
      { logits: null, ...this.cache.fetches() },
      "a step of the decoder",
    );
    this.cache.keep(outputs);
    for (const id of ids) this.ids.push(id);
    const logits = (await outputs.logits.getData()) as Float32Array;
    return logits.subarray(logits.length - vocabSize);
  }
}
