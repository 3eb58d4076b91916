/**
 * Keys and values of one sequence, as tensors that a run takes and gives.
 *
 * They grow by doubling, so that a short conversation does not pay for the longest. Knows shapes and where they lie;
 * knows nothing of ids.
 */
import type { Tensor } from "onnxruntime-common";
import { asPhirtError } from "./errors.js";
import { cacheNames, type Geometry } from "./graphs.js";
import type { CachePlace, Feeds, Onnxruntime, Outputs } from "./runtime.js";

const FIRST_CAPACITY = 256;

type Dtype = "float32" | "int8";
type Values = Float32Array | Int8Array;

export class KVCache {
  readonly names: readonly { past: string; present: string }[];
  private tensors: Tensor[] = [];
  private capacity = 0;

  constructor(
    private readonly ort: Onnxruntime,
    private readonly place: CachePlace,
    private readonly dtype: Dtype,
    private readonly geometry: Geometry,
  ) {
    this.names = cacheNames(geometry.numLayers);
  }

  /** Makes room for so many positions, of which `length` are filled. */
  async reserve(total: number, length: number): Promise<void> {
    if (total <= this.capacity) return;
    let capacity = Math.max(this.capacity, FIRST_CAPACITY);
    while (capacity < total) capacity *= 2;
    capacity = Math.max(Math.min(capacity, this.geometry.context), total);
    try {
      for (let index = 0; index < this.names.length; ++index) {
        this.tensors[index] = await this.grown(this.tensors[index], capacity, length);
      }
    } catch (error) {
      this.release();
      throw asPhirtError(error, "keys and values of a longer conversation");
    }
    this.capacity = capacity;
  }

  /** Puts keys and values into what a run takes. */
  feed(feeds: Feeds): void {
    for (const [index, { past }] of this.names.entries()) feeds[past] = this.tensors[index];
  }

  /** What a run is to give: into the same arrays, or wherever it likes. */
  fetches(): Record<string, Tensor | null> {
    const inPlace = this.place === "in place";
    return Object.fromEntries(
      this.names.map(({ present }, index) => [present, inPlace ? this.tensors[index] : null]),
    );
  }

  /** Takes over what a run has given. */
  keep(outputs: Outputs): void {
    if (this.place === "in place") return;
    for (const [index, { present }] of this.names.entries()) {
      this.tensors[index].dispose();
      this.tensors[index] = outputs[present];
    }
  }

  release(): void {
    for (const tensor of this.tensors) tensor?.dispose();
    this.tensors = [];
    this.capacity = 0;
  }

  /** A larger tensor with what the first positions of the old one hold, which is given up. */
  private async grown(old: Tensor | undefined, capacity: number, length: number): Promise<Tensor> {
    const { numKvHeads: heads, headDim } = this.geometry;
    const size = heads * capacity * headDim;
    const data: Values = this.dtype === "int8" ? new Int8Array(size) : new Float32Array(size);
    if (old && length) {
      const filled = (await old.getData()) as Values;
      for (let head = 0; head < heads; ++head) {
        const from = head * this.capacity * headDim;
        data.set(filled.subarray(from, from + length * headDim), head * capacity * headDim);
      }
    }
    old?.dispose();
    return new this.ort.Tensor(this.dtype, data as Float32Array, [1, heads, capacity, headDim]) as Tensor;
  }
}
