/**
 * The kind `phi4mm_image`: crops of a picture on a canvas beside one view of the whole. Formulas and their sources are
 * in phirt/encoders/phi4mm_image.py.
 */
import {
  type Detail,
  type GraphInput,
  type ImageKind,
  type Prepared,
  refusePicture,
} from "./encoder_kind.js";
import type { Field } from "./fields.js";
import { type Picture, planes, resize, resizeCubic } from "./picture.js";

interface Size {
  readonly width: number;
  readonly height: number;
}

interface Layout {
  readonly across: number;
  readonly down: number;
  readonly canvas: Size;
  readonly resized: Size;
}

const AUTO_CROPS = 12;
const NORMAL = Float32Array.from({ length: 256 }, (_, value) => normal(value));
const TABLES = [NORMAL, NORMAL, NORMAL];

export class Phi4mmImage implements ImageKind {
  private readonly crop: number;
  private readonly patch: number;
  private readonly pool: number;
  private readonly maxCrops: number;
  private readonly minSide: number;
  private readonly grid: number; // patches of a crop's side

  constructor(constants: Field) {
    this.crop = constants.get("crop_size").integer(1, 4096);
    this.patch = constants.get("patch_size").integer(1, 4096);
    this.pool = constants.get("pool").integer(1, 64);
    this.maxCrops = constants.get("max_crops").integer(1, 256);
    this.minSide = constants.get("min_side").integer(1, 4096);
    if (this.crop % (this.patch * this.pool))
      constants.get("crop_size").refuse("a multiple of patch_size x pool");
    this.grid = this.crop / this.patch;
  }

  prepare(picture: Picture, detail: Detail): Prepared {
    const most = { low: 1, auto: AUTO_CROPS, high: this.maxCrops }[detail];
    const layout = this.plan(picture, Math.min(most, this.maxCrops));
    return this.inputs(onCanvas(picture, layout), layout);
  }

  private chooseCrops(size: Size, limit: number): [number, number] {
    const [across, down] = [Math.ceil(size.width / this.crop), Math.ceil(size.height / this.crop)];
    if (across * down <= limit) return [across, down];
    const pairs: [number, number][] = [];
    for (let i = 1; i <= limit; ++i) for (let j = 1; j <= Math.trunc(limit / i); ++j) pairs.push([i, j]);
    pairs.sort((a, b) => a[0] * a[1] - b[0] * b[1]);
    let best: [number, number] = [1, 1];
    let least = Number.POSITIVE_INFINITY;
    for (const [i, j] of pairs) {
      const off = Math.abs(size.width / size.height - i / j);
      const covers = size.width * size.height > 0.5 * this.crop * this.crop * i * j;
      if (off < least || (off === least && covers)) [best, least] = [[i, j], off];
    }
    return best;
  }

  private plan(size: Size, maxCrops: number): Layout {
    const need = `each side needs at least ${this.minSide}`;
    if (Math.min(size.width, size.height) < this.minSide) refusePicture(size, `; ${need}`);
    const [across, down] = this.chooseCrops(size, maxCrops);
    const canvas = { width: across * this.crop, height: down * this.crop };
    const [byWidth, byHeight] = [canvas.width / size.width, canvas.height / size.height];
    const resized =
      byWidth < byHeight
        ? { width: canvas.width, height: Math.trunc(size.height * byWidth) }
        : { width: Math.trunc(size.width * byHeight), height: canvas.height };
    if (Math.min(resized.width, resized.height) < this.minSide) {
      const there = `${resized.width} x ${resized.height}`;
      refusePicture(size, `, too long and narrow: on the model's canvas it is ${there}, ${need}; crop it`);
    }
    return { across, down, canvas, resized };
  }

  private inputs(canvas: Picture, layout: Layout): Prepared {
    const { crop, grid, pool } = this;
    const [crops, plane, patches] = [1 + layout.across * layout.down, crop * crop, grid * grid];
    const values = new Float32Array(crops * 3 * plane);
    const whole = resizeCubic(canvas, crop);
    for (let at = 0; at < plane; ++at)
      for (let c = 0; c < 3; ++c) values[c * plane + at] = normal(whole[3 * at + c]);
    // Columns and rows of patches that show the picture; the others are wholly padding.
    const columns =
      layout.across * grid - Math.trunc((layout.canvas.width - layout.resized.width) / this.patch);
    const rows = layout.down * grid - Math.trunc((layout.canvas.height - layout.resized.height) / this.patch);
    const mask = new Uint8Array(crops * patches);
    const positions = new BigInt64Array(crops * patches);
    for (let number = 0; number < crops; ++number) {
      const row = number ? Math.trunc((number - 1) / layout.across) : 0;
      const column = number ? (number - 1) % layout.across : 0;
      const cut = values.subarray(number * 3 * plane);
      if (number) planes(canvas, column * crop, row * crop, crop, TABLES, cut);
      const right = number ? Math.min(Math.max(columns - column * grid, 0), grid) : grid;
      const below = number ? Math.min(Math.max(rows - row * grid, 0), grid) : grid;
      for (let y = 0; y < below; ++y) {
        for (let x = 0; x < right; ++x) {
          const at = number * patches + y * grid + x;
          mask[at] = 1;
          positions[at] = BigInt(Math.trunc((y * grid) / below) * grid + Math.trunc((x * grid) / right));
        }
      }
    }
    const [keptRows, keptColumns, pooled] = [Math.ceil(rows / pool), Math.ceil(columns / pool), grid / pool];
    return {
      numTokens: keptRows * keptColumns + keptRows + 1 + pooled * pooled + pooled,
      runs: [
        {
          pixel_values: { dtype: "float32", shape: [crops, 3, crop, crop], data: values },
          patch_mask: { dtype: "bool", shape: [crops, patches], data: mask },
          position_ids: { dtype: "int64", shape: [crops, patches], data: positions },
          crop_grid: pair(layout.down, layout.across),
          feature_grid: pair(keptRows, keptColumns),
        },
      ],
    };
  }
}

/** The picture resized, with white to its right or below it. */
function onCanvas(picture: Picture, layout: Layout): Picture {
  const { canvas } = layout;
  const resized = resize(picture, layout.resized.width, layout.resized.height, "bilinear");
  if (resized.width === canvas.width && resized.height === canvas.height) return resized;
  const rgb = new Uint8Array(3 * canvas.width * canvas.height).fill(255);
  const row = 3 * resized.width;
  for (let y = 0; y < resized.height; ++y) {
    rgb.set(resized.rgb.subarray(y * row, (y + 1) * row), 3 * y * canvas.width);
  }
  return { ...canvas, rgb };
}

function normal(value: number): number {
  return Math.fround(Math.fround(Math.fround(value / 255) - 0.5) / 0.5);
}

function pair(first: number, second: number): GraphInput {
  return { dtype: "int64", shape: [2], data: BigInt64Array.of(BigInt(first), BigInt(second)) };
}
